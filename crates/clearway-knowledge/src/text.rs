//! From text to terms: words, their parts, their stems; which language a text is in.
//!
//! The same text gives the same terms, whatever was read before it. Anything is cut into words in linear time, and no
//! term is longer than [`MAX_TERM`] bytes.

use std::borrow::Cow;

use rust_stemmers::Stemmer;
use unicode_segmentation::UnicodeSegmentation as _;

use crate::document::is_wide;

pub(crate) use language::Language;

mod language;

/// Longer words are cut: they are data, not language.
const MAX_TERM: usize = 64;

/// Stems words of one language.
pub(crate) struct Analyzer {
    language: Language,
    stemmer: Option<Stemmer>,
}

/// A word on its way into the index or into a query.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Token<'a> {
    /// As it was written.
    pub(crate) word: &'a str,
    pub(crate) term: String,
    /// Words that carry no meaning by themselves: they have a place, and are not indexed.
    pub(crate) is_stop: bool,
    /// An additional form of the token before it, at the same place.
    pub(crate) is_variant: bool,
}

impl Analyzer {
    pub(crate) fn new(language: Language) -> Self {
        Self { language, stemmer: language.algorithm().map(Stemmer::create) }
    }

    /// Calls `each` for each token, in order, until it says to stop.
    pub(crate) fn tokens<'a>(&self, text: &'a str, mut each: impl FnMut(Token<'a>) -> bool) {
        let mut wide: Option<(usize, char)> = None;
        let mut before: Option<(usize, &str)> = None;
        for (at, word) in text.unicode_word_indices() {
            if let Some(c) =
                word.chars().next().filter(|c| is_wide(*c) && word.chars().count() == 1)
            {
                // Scripts without spaces: pairs of neighbouring characters stand for words.
                let pair = wide
                    .filter(|(before, _)| before + 3 >= at)
                    .map(|(_, before)| [before, c].iter().collect::<String>());
                wide = Some((at, c));
                let single = Token { word, term: c.to_string(), is_stop: false, is_variant: false };
                if !each(single) {
                    return;
                }
                if let Some(term) = pair
                    && !each(Token { word, term, is_stop: false, is_variant: true })
                {
                    return;
                }
                continue;
            }
            if !self.word(word, &mut each) {
                return;
            }
            let side_by_side = before.filter(|(start, earlier)| start + earlier.len() + 1 == at);
            if let Some((start, earlier)) = side_by_side
                && let Some(term) = self.with_letter(earlier, word)
            {
                let word = &text[start..at + word.len()];
                if !each(Token { word, term, is_stop: false, is_variant: true }) {
                    return;
                }
            }
            before = Some((at, word));
        }
    }

    /// A word together with a single letter beside it, which says nothing alone: vitamin C, T cells.
    fn with_letter(&self, first: &str, second: &str) -> Option<String> {
        let is_letter = |word: &str| word.len() == 1 && word.as_bytes()[0].is_ascii_alphabetic();
        let (word, letter, before) = match (is_letter(first), is_letter(second)) {
            (true, false) => (second, first, true),
            (false, true) => (first, second, false),
            _ => return None,
        };
        let letter = letter.to_ascii_lowercase();
        // What an apostrophe leaves where it was taken for a space.
        let is_rest = letter == "s" || (letter == "t" && !before);
        let is_word = word.chars().all(char::is_alphanumeric);
        if is_rest || !is_word || self.language.is_stop(&letter) {
            return None;
        }
        let token = self.token(word);
        match (token.is_stop, before) {
            (true, _) => None,
            (false, true) => Some(format!("{letter} {}", token.term)),
            (false, false) => Some(format!("{} {letter}", token.term)),
        }
    }

    /// One word between spaces: itself, or its parts and what they are together.
    fn word<'a>(&self, word: &'a str, each: &mut impl FnMut(Token<'a>) -> bool) -> bool {
        let mut parts = 0;
        for part in word.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()) {
            parts += 1;
            if !each(self.token(part)) {
                return false;
            }
            if let Some(noun) = without_particle(part)
                && !each(Token { is_variant: true, ..self.token(noun) })
            {
                return false;
            }
            let humps = humps(part);
            if humps.len() > 1 {
                for hump in humps {
                    if !each(Token { is_variant: true, ..self.token(hump) }) {
                        return false;
                    }
                }
            }
        }
        let is_name = parts > 1 && word.contains(['_', '.', ':']);
        let whole = || Token {
            word,
            term: cut(&word.to_lowercase()).to_owned(),
            is_stop: false,
            is_variant: true,
        };
        !is_name || each(whole())
    }

    fn stem<'a>(&self, stemmer: &Stemmer, word: &'a str) -> Cow<'a, str> {
        let whole = WHOLE.into_iter().find_map(|start| Some((start, word.strip_prefix(start)?)));
        let Some((start, rest)) = whole.filter(|_| self.language == Language::English) else {
            return stemmer.stem(word);
        };
        let stem = stemmer.stem(&format!("{LEFT_WHOLE}{rest}")).into_owned();
        match stem.strip_prefix(LEFT_WHOLE) {
            Some("" | "e") => Cow::Borrowed(start),
            Some(rest) => Cow::Owned(format!("{start}{rest}")),
            None => stemmer.stem(word),
        }
    }

    fn token<'a>(&self, word: &'a str) -> Token<'a> {
        let lower = half_width(word).to_lowercase();
        let lower = cut(&lower);
        let is_stop = self.language.is_stop(lower)
            || (lower.len() == 1 && !lower.as_bytes()[0].is_ascii_digit());
        let term = match &self.stemmer {
            Some(stemmer) if !is_stop && !lower.bytes().any(|b| b.is_ascii_digit()) => {
                fold(&self.stem(stemmer, lower))
            }
            _ => fold(lower),
        };
        Token { word, term, is_stop, is_variant: false }
    }
}

/// Beginnings of English words that mean something else than what a stemmer would leave of them: an organism is no
/// organ, what is lateral is not later. Newer versions of the algorithm leave them whole.
const WHOLE: [&str; 5] = ["emerg", "inter", "later", "organ", "univers"];
/// A beginning that the stemmer at hand leaves whole.
const LEFT_WHOLE: &str = "gener";

/// The parts of `camelCase`, `HTTPServer` and the like.
fn humps(word: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    if !word.is_ascii() || word.len() > MAX_TERM {
        return parts;
    }
    let bytes = word.as_bytes();
    let mut start = 0;
    for at in 1..bytes.len() {
        let up = bytes[at].is_ascii_uppercase();
        let after_small = up && bytes[at - 1].is_ascii_lowercase();
        let before_small = up
            && bytes[at - 1].is_ascii_uppercase()
            && bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase);
        // `URLs` is one word.
        let plural = bytes.get(at + 1) == Some(&b's') && at + 2 == bytes.len();
        if after_small || (before_small && !plural) {
            parts.push(&word[start..at]);
            start = at;
        }
    }
    if start > 0 {
        parts.push(&word[start..]);
    }
    parts
}

fn cut(word: &str) -> &str {
    let mut end = word.len().min(MAX_TERM);
    while !word.is_char_boundary(end) {
        end -= 1;
    }
    &word[..end]
}

/// Korean particles, which follow a noun without a space; of several that fit the longest is meant.
const PARTICLES: [&str; 22] = [
    "에서는",
    "으로는",
    "입니다",
    "이라는",
    "에서",
    "에게",
    "으로",
    "까지",
    "부터",
    "처럼",
    "보다",
    "이다",
    "은",
    "는",
    "이",
    "가",
    "을",
    "를",
    "에",
    "의",
    "와",
    "과",
];

/// A Korean word without its particle.
fn without_particle(word: &str) -> Option<&str> {
    let is_hangul = |c: char| ('\u{ac00}'..='\u{d7a3}').contains(&c);
    if !word.starts_with(is_hangul) {
        return None;
    }
    let noun = PARTICLES.iter().find_map(|particle| word.strip_suffix(particle))?;
    (!noun.is_empty()).then_some(noun)
}

/// Letters and digits as wide as an ideograph are the same ones (Unicode, Halfwidth and Fullwidth Forms).
fn half_width(word: &str) -> Cow<'_, str> {
    let wide = '\u{ff01}'..='\u{ff5e}';
    if !word.contains(|c| wide.contains(&c)) {
        return Cow::Borrowed(word);
    }
    let narrow = |c: char| match wide.contains(&c) {
        true => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        false => c,
    };
    Cow::Owned(word.chars().map(narrow).collect())
}

/// Without accents, for whoever types without them.
fn fold(word: &str) -> String {
    if word.is_ascii() {
        return word.to_owned();
    }
    let mut folded = String::with_capacity(word.len());
    for c in word.chars() {
        match c {
            'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ā' | 'ă' | 'ą' => folded.push('a'),
            'ç' | 'ć' | 'č' => folded.push('c'),
            'ď' | 'đ' | 'ð' => folded.push('d'),
            'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ė' | 'ę' | 'ě' => folded.push('e'),
            'ğ' => folded.push('g'),
            'ì' | 'í' | 'î' | 'ï' | 'ī' | 'į' | 'ı' => folded.push('i'),
            'ł' | 'ľ' | 'ĺ' => folded.push('l'),
            'ñ' | 'ń' | 'ň' => folded.push('n'),
            'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' | 'ō' | 'ő' => folded.push('o'),
            'ŕ' | 'ř' => folded.push('r'),
            'ś' | 'š' | 'ş' | 'ș' => folded.push('s'),
            'ť' | 'ţ' | 'ț' => folded.push('t'),
            'ù' | 'ú' | 'û' | 'ü' | 'ū' | 'ů' | 'ű' | 'ų' => folded.push('u'),
            'ý' | 'ÿ' => folded.push('y'),
            'ź' | 'ż' | 'ž' => folded.push('z'),
            'ß' => folded.push_str("ss"),
            'æ' => folded.push_str("ae"),
            'œ' => folded.push_str("oe"),
            // Combining marks, when accents come as characters of their own.
            '\u{300}'..='\u{36f}' => {}
            _ => folded.push(c),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn korean_nouns_are_found_without_their_particles() {
        assert_eq!(without_particle("창고는"), Some("창고"));
        assert_eq!(without_particle("부산에서"), Some("부산"));
        assert_eq!(without_particle("열쇠"), None);
        assert_eq!(without_particle("은"), None);
        assert!(terms("열쇠는 창고에").contains(&"창고".to_owned()));
    }

    #[test]
    fn wide_letters_are_letters() {
        assert_eq!(terms("ＣＲＡＮＥＳ"), terms("cranes"));
    }

    fn terms(text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        Analyzer::new(Language::English).tokens(text, |token| {
            if !token.is_stop {
                terms.push(token.term);
            }
            true
        });
        terms
    }

    #[test]
    fn what_only_begins_alike_keeps_apart() {
        for (a, b) in [
            ("organ", "organization"),
            ("organ", "organisms"),
            ("international", "interns"),
            ("university", "universe"),
            ("emergency", "emerge"),
            ("later", "lateral"),
        ] {
            assert_ne!(terms(a), terms(b), "{a} {b}");
        }
        for (a, b) in [
            ("organization", "organizations"),
            ("organ", "organs"),
            ("emerge", "emerged"),
            ("universe", "universes"),
            ("intervals", "interval"),
            ("generals", "general"),
        ] {
            assert_eq!(terms(a), terms(b), "{a} {b}");
        }
    }

    #[test]
    fn a_letter_counts_with_the_word_beside_it() {
        assert_eq!(terms("Vitamin C"), ["vitamin", "vitamin c"]);
        assert_eq!(terms("T-cells"), ["cell", "t cell"]);
        // An article, a rest of an apostrophe, a letter that stands apart.
        assert_eq!(terms("banana a"), ["banana"]);
        assert_eq!(terms("Wilson s"), ["wilson"]);
        assert_eq!(terms("vitamin, c"), ["vitamin"]);
    }
}
