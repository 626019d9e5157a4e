//! Which language a text is in, told by its small words, and what these are.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use rust_stemmers::Algorithm;
use unicode_segmentation::UnicodeSegmentation as _;

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Language {
    English,
    German,
    French,
    Spanish,
    Italian,
    Portuguese,
    Dutch,
    Swedish,
    Danish,
    Norwegian,
    Finnish,
    Russian,
}

impl Language {
    pub(crate) const ALL: [Self; 12] = [
        Self::English,
        Self::German,
        Self::French,
        Self::Spanish,
        Self::Italian,
        Self::Portuguese,
        Self::Dutch,
        Self::Swedish,
        Self::Danish,
        Self::Norwegian,
        Self::Finnish,
        Self::Russian,
    ];

    /// The language of a text, if its small words say so clearly: there are several different ones, as many as running text has, and
    /// none other has as many. A few of them turn up in any text: names, terms, words that were left.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let words = small_words();
        let mut counts = [0_u32; Self::ALL.len()];
        let mut different = [0_u32; Self::ALL.len()];
        let mut seen: HashSet<&str> = HashSet::new();
        let mut read = 0_u32;
        for word in text.unicode_words().take(SAMPLE_WORDS) {
            read += 1;
            if word.len() > 16 {
                continue;
            }
            let lower = word.to_lowercase();
            if let Some((small, languages)) = words.get_key_value(lower.as_str()) {
                let is_new = seen.insert(small);
                for language in languages {
                    counts[*language as usize] += 1;
                    different[*language as usize] += u32::from(is_new);
                }
            }
        }
        let most = counts.iter().copied().max().unwrap_or_default();
        let best = Self::ALL.into_iter().find(|language| counts[*language as usize] == most)?;
        let several = different[best as usize] >= MIN_SMALL_WORDS + read / WORDS_FOR_ONE_MORE;
        (several && most * RUNNING_TEXT >= read).then_some(best)
    }

    pub(crate) fn algorithm(self) -> Option<Algorithm> {
        Some(match self {
            Self::English => Algorithm::English,
            Self::German => Algorithm::German,
            Self::French => Algorithm::French,
            Self::Spanish => Algorithm::Spanish,
            Self::Italian => Algorithm::Italian,
            Self::Portuguese => Algorithm::Portuguese,
            Self::Dutch => Algorithm::Dutch,
            Self::Swedish => Algorithm::Swedish,
            Self::Danish => Algorithm::Danish,
            Self::Norwegian => Algorithm::Norwegian,
            Self::Finnish => Algorithm::Finnish,
            Self::Russian => Algorithm::Russian,
        })
    }

    /// Whether a word in lower case is one of the small ones that carry no meaning by themselves.
    pub(crate) fn is_stop(self, word: &str) -> bool {
        small_words().get(word).is_some_and(|languages| languages.contains(&self))
    }

    /// Whether a word in lower case says only that something is asked, or is a small one in any language.
    /// Where nobody has it, nothing is missing.
    pub(crate) fn only_asks(word: &str) -> bool {
        small_words().contains_key(word) || ASKING.split(' ').any(|asking| asking == word)
    }

    fn small_words(self) -> &'static str {
        match self {
            Self::English => {
                "a about above after again against all also am an and any are as at be because been before being below \
                 between both but by can cannot could did do does doing done down during each either else ever few for \
                 from further get had has have having he hence her here hers herself him himself his how however i if in \
                 into is it its itself just let like may me might more most much must my myself neither no nor not now \
                 of off on once one only onto or other our ours ourselves out over own per rather same shall she should \
                 since so some such than that the their theirs them themselves then there thereby therefore these they \
                 this those through thus to too under until up upon us very was we were what when where whether which \
                 while who whom whose why will with within without would yet you your yours yourself re ve ll don didn \
                 doesn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn"
            }
            Self::German => {
                "aber alle allem allen aller alles als also am an ander andere anderem anderen anderer anderes auch auf \
                 aus bei beim bin bis bist da damit dann das dass daß dein deine dem den denn der des dich die dies diese \
                 diesem diesen dieser dieses dir doch dort du durch ein eine einem einen einer eines einig einige er es \
                 etwas euch euer für gegen gewesen hab habe haben hat hatte hatten hier hin hinter ich ihm ihn ihnen ihr \
                 ihre ihrem ihren ihrer im in indem ins ist ja jede jedem jeden jeder jedes jene kann kein keine keinem \
                 keinen keiner können könnte man manche mein meine mich mir mit muss musste müssen nach nicht nichts noch \
                 nun nur ob oder ohne sehr sein seine seinem seinen seiner selbst sich sie sind so solche soll sollte \
                 sondern sonst über um und uns unser unsere unter viel vom von vor während war waren was weg weil weiter \
                 welche welchem welchen welcher wenn werde werden wer wie wieder will wir wird wirst wo wollen wollte \
                 wurde wurden würde würden zu zum zur zwar zwischen"
            }
            Self::French => {
                "à au aux avec avoir avait avaient ce cela ces cet cette ceux chez comme comment d dans de des dont du elle \
                 elles en encore entre est et étaient était été être eu eux fait faut fut ici il ils je l la le les leur \
                 leurs lui ma mais me même mes moi mon n ne nos notre nous on ont ou où par parce pas plus pour pourquoi \
                 pendant qu quand que quel quelle quelles quels qui sa sans se sera ses si sa son sont sous sur ta te tes \
                 toi ton tous tout toute toutes très tu un une vos votre vous y c j m s t"
            }
            Self::Spanish => {
                "al algo algunas algunos ante antes aquel aquella como con contra cual cuando de del desde donde dónde \
                 durante e el él ella ellas ellos en entre era eran eres es esa esas ese eso esos esta está estaba están \
                 estas este esto estos fue fueron ha había han hasta hay la las le les lo los más me mi mis mucho muy nada \
                 ni no nos nosotros o otra otras otro otros para pero poco por porque qué que quien quién se sea ser si sí \
                 sin sobre son su sus también tanto te tiene tienen todo todos tu tus un una uno unos unas y ya yo cómo"
            }
            Self::Italian => {
                "a ad agli ai al alla alle allo anche avere aveva c che chi ci ciò col come con contro cui d da dagli dai dal \
                 dalla dalle dallo degli dei del della delle dello di dove e è ed era erano essere fra gli ha hanno ho i il \
                 in io l la le lei li lo loro lui ma me mi mia mio ne negli nei nel nella nelle nello no noi non nostro o \
                 ogni per perché perchè più quale quali quando quanto quella quelle quelli quello questa queste questi \
                 questo se sei si sia siamo sono stata stato su sua sue sugli sui sul sulla sulle sullo suo suoi ti tra tu \
                 tutti tutto un una uno vi voi"
            }
            Self::Portuguese => {
                "a à ao aos as às até com como da das de dela dele deles depois do dos e é ela elas ele eles em entre era \
                 eram essa esse esta está estão este eu foi foram há isso isto já lhe mais mas me mesmo meu meus minha muito \
                 na não nas nem no nos nós nossa nosso num numa o onde os ou para pela pelas pelo pelos por porque qual \
                 quando que quem se sem ser será seu seus só sua suas são também te tem têm ter teu tinha tu tua um uma \
                 umas uns você vocês"
            }
            Self::Dutch => {
                "aan al alle als altijd andere ben bij daar dan dat de der deze die dit doch doen door dus een eens en er ge \
                 geen geweest haar had heb hebben heeft hem het hier hij hoe hun iemand iets ik in is ja je kan kon kunnen \
                 maar me meer men met mij mijn moet na naar niet niets nog nu of om omdat onder ons ook op over reeds te tegen \
                 toch toen tot u uit uw van veel voor want waren was wat waar waarom we wel werd wezen wie wij wil worden \
                 wordt zal ze zelf zich zij zijn zo zonder zou"
            }
            Self::Swedish => {
                "alla allt att av bara blev bli blir de dem den denna deras dess det detta dig din ditt du där då efter ej \
                 eller en er ett från för ha hade han hans har henne hennes hon honom hur här i icke inom inte jag ju kan \
                 kunde man med mellan men mig min mot mycket ni nu när någon något några och om oss på samma sedan sig sin \
                 sina sitt ska skulle som så sådan till under upp ut utan vad var vara varför varje vem vi vid vilken är över"
            }
            Self::Danish => {
                "ad af alle alt anden at blev blive bliver da de dem den denne der deres det dette dig din disse dog du efter \
                 eller en end er et for fra ham han hans har havde have hende hendes her hos hun hvad hvem hvis hvor hvordan \
                 hvorfor i ikke ind ja jeg jer jo kunne man mange med meget men mig min mit mod når ned noget nogle nu og \
                 også om op os over på sig selv sig sin sine sit skal skulle som sådan til ud under var vi vil ville være været"
            }
            Self::Norwegian => {
                "alle at av bare begge ble blei bli blir blitt da de deg dei deim den denne der dere deres det dette di din \
                 disse ditt du då eg ein eit eitt eller en enn er et ett etter for fordi fra før ha hadde han hans har henne \
                 hennes her hos hun hva hvem hver hvilke hvis hvor hvordan hvorfor i ikke inn ja jeg kan kom kun kunne man \
                 mange med meg men mer min mitt mot mye nå når noe noen og også om opp oss over på så seg selv si sin sine \
                 sitt skal skulle slik som til um under ut uten være vært var ved vi vil ville"
            }
            Self::Finnish => {
                "ei eivät emme en et että hän häntä he heidän heille hänen ja jos joka jonka jossa jotka jotta kanssa keitä \
                 ketkä koska kuin kuka kun me meidän meille mikä mikään millä minä minua minun missä miten mitä mukaan mutta \
                 muut myös ne nämä näiden niiden niin niitä no noin nyt ole oli olivat olla olen on ovat se sekä sen siellä \
                 siihen siinä sinä sitä tai tämä tämän tässä te teidän tuo vaan vai vaikka yli"
            }
            Self::Russian => {
                "а без более больше будет будто бы был была были было быть в вам вас весь во вот все всего всех вы где да даже \
                 для до его ее её если есть еще ещё же за здесь и из или им их к как какая какой когда кто ли либо меня мне \
                 может мой мы на над надо наш не него нее ней нет ни них но ну о об однако он она они оно от очень по под при с \
                 со так также такой там те тем то того тоже той только том ты у уже хотя чего чей чем что чтобы эта эти это этого \
                 этой этом этот я"
            }
        }
    }
}

/// Words that ask and that are no small ones, because texts say something with them: English, German, French, Spanish,
/// Italian, Portuguese, Dutch, the Nordic languages, Russian, Chinese, Korean.
const ASKING: &str = "many several lot lots please tell \
    viele vieles wann wieviel wieviele wozu woher wohin bitte \
    combien quand quoi lequel laquelle \
    cuánto cuánta cuántos cuántas cuándo cuál cuáles adónde \
    quanti quante dove quanta quantos quantas \
    hoeveel wanneer welke vele hvornår hvilken många hur mange hvilket montako milloin kuinka paljonko \
    где кого кому куда откуда почему зачем сколько много какие каких каком какого \
    在 哪 哪里 哪儿 里 吗 呢 什 么 什么 谁 怎 怎么 样 几 多少 多 少 的 了 是 有 我 你 \
    어디 언제 누가 무엇 어떻게 얼마나";

/// So many different small words tell a language, and more of them in a longer text.
const MIN_SMALL_WORDS: u32 = 2;
const WORDS_FOR_ONE_MORE: u32 = 100;
/// In running text at least one word of so many is a small one.
const RUNNING_TEXT: u32 = 7;
/// Of a long text the start tells enough.
const SAMPLE_WORDS: usize = 400;

/// Each small word with the languages that have it.
fn small_words() -> &'static HashMap<&'static str, Vec<Language>> {
    static WORDS: OnceLock<HashMap<&'static str, Vec<Language>>> = OnceLock::new();
    WORDS.get_or_init(|| {
        let mut words: HashMap<&'static str, Vec<Language>> = HashMap::new();
        for language in Language::ALL {
            let unique: HashSet<&str> = language.small_words().split_whitespace().collect();
            for word in unique {
                words.entry(word).or_default().push(language);
            }
        }
        words
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_small_word_however_often_does_not_tell_a_language() {
        // What numbers were replaced by, and what means "in a" in Portuguese.
        let table =
            "glucose num mmol insulin num units fasting num hours protein num grams ".repeat(8);
        assert_eq!(Language::of(&table), None);
        assert_eq!(Language::of("Wo ist der Schlüssel zum Lager?"), Some(Language::German));
        assert_eq!(Language::of("A ponte foi construída num vale"), Some(Language::Portuguese));
    }
}
