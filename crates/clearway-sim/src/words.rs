//! Words for made-up answers, taken from the prompt.
//!
//! A prompt that lists facts (`- Product: a lamp`) gets answers that speak of them, so that a document
//! made of simulated answers can be read and differs from one brief to the next. The same prompt
//! always gets the same answer.

use self::phrases::{About, Kind, phrases};

mod phrases;

/// Facts of a prompt, and a source of variety that depends on nothing but the prompt.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    facts: Vec<(String, String)>,
    seed: u64,
    /// The prompt speaks of a revision: what is judged has been worked on.
    revised: bool,
}

/// Facts that are looked at.
const FACTS: usize = 24;

impl Words {
    /// `None` when the prompt lists no facts.
    pub(crate) fn of(prompt: &str) -> Option<Self> {
        let facts: Vec<(String, String)> = prompt
            .lines()
            .filter_map(|line| line.trim().strip_prefix("- ")?.split_once(": "))
            .filter(|(key, value)| key.len() <= 40 && !value.trim().is_empty())
            .map(|(key, value)| (key.to_lowercase(), shortened(value.trim(), 90)))
            .take(FACTS)
            .collect();
        let seed = prompt.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let revised = prompt.to_lowercase().contains("this is revision");
        (!facts.is_empty()).then_some(Self { facts, seed, revised })
    }

    /// A number that differs by place and is the same for the same prompt.
    pub(crate) fn pick(&self, name: &str, index: u64, among: u64) -> u64 {
        let mixed = name
            .bytes()
            .fold(self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        (mixed ^ (mixed >> 29)) % among.max(1)
    }

    fn fact(&self, keys: &[&str]) -> Option<&str> {
        let fits = |(key, _): &&(String, String)| keys.iter().any(|wanted| key.contains(wanted));
        self.facts.iter().find(fits).map(|(_, value)| value.as_str())
    }

    fn subject(&self) -> &str {
        self.fact(&["product", "idea", "subject", "topic"]).unwrap_or(&self.facts[0].1)
    }

    fn audience(&self) -> &str {
        self.fact(&["audience", "customer", "user"]).unwrap_or("the people it is made for")
    }

    /// Two of the features that a fact lists with semicolons; the same where there is one only.
    fn features(&self, name: &str, index: u64) -> (&str, &str) {
        // What the thing can do says more about it than what its maker wants.
        let known = ["stands out", "feature", "goal"].into_iter().find_map(|key| self.fact(&[key]));
        let list = known.unwrap_or("what it does well");
        let all: Vec<&str> = list.split(';').map(str::trim).collect();
        let at = self.pick(name, index, all.len() as u64) as usize;
        (all[at], all[(at + 1) % all.len()])
    }

    /// A share of the range, for numbers.
    pub(crate) fn share(&self, name: &str, index: u64) -> f64 {
        let share = self.pick(name, index, 1000) as f64 / 1000.0;
        match name {
            "score" if self.revised => 0.82 + share * 0.15,
            "score" => 0.5 + share * 0.25,
            // Of the whole range of ages, those of people who decide for themselves.
            "age" => 0.22 + share * 0.4,
            _ => share,
        }
    }

    /// A text for a property; `about` is its description.
    pub(crate) fn text(&self, name: &str, about: &str, index: u64) -> String {
        let about = about.to_lowercase();
        let (subject, audience) = (self.subject(), self.audience());
        let (feature, second) = self.features(name, index);
        let goal = self.fact(&["goal"]).and_then(|goals| goals.split(';').next());
        let goal = goal.unwrap_or("that people know it").trim();
        let kind = Kind::of(name, &about);
        let list = phrases(kind, About { subject, audience, feature, second, goal });
        // Elements of a list follow each other, so that they differ.
        let at = index + self.pick(name, 0, list.len() as u64);
        list[(at % list.len() as u64) as usize].clone()
    }
}

/// A text for a colour that a pattern asks for.
pub(crate) fn colour(number: u64) -> String {
    const COLOURS: &[&str] =
        &["#1f4d7a", "#e07a3f", "#2a9d8f", "#f2c14e", "#7b3f9e", "#c8445c", "#3d5a40", "#264653"];
    COLOURS[(number % COLOURS.len() as u64) as usize].to_owned()
}

/// As many whole words as fit.
pub(crate) fn shortened(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let cut: String = text.chars().take(most).collect();
    let whole = cut.rfind(char::is_whitespace).map_or(&*cut, |end| &cut[..end]);
    whole.trim_end_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ':' | ';')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_speak_of_the_brief_and_are_repeatable() {
        let lamp = Words::of("- Product: Glow lamp\n- Audience: students\n- What stands out: dims")
            .unwrap();
        let tea =
            Words::of("- Product: Night tea\n- Audience: nurses\n- What stands out: calm").unwrap();
        let text = lamp.text("body", "body copy", 0);
        assert!(text.contains("Glow lamp"), "{text}");
        assert_eq!(text, lamp.text("body", "body copy", 0));
        assert_ne!(text, tea.text("body", "body copy", 0));
        assert!(Words::of("Just answer.").is_none());
    }

    #[test]
    fn what_is_too_long_ends_with_a_word() {
        assert_eq!(shortened("as it is", 20), "as it is");
        assert_eq!(shortened("every day, without a manual", 12), "every day");
        assert_eq!(shortened("Donaudampfschiff", 5), "Donau");
    }

    #[test]
    fn properties_get_what_they_ask_for() {
        let words = Words::of("- Product: lamp\n- Goals: sell 500").unwrap();
        assert!(
            ["Orders", "Return visits", "Sign-ups for the newsletter", "Cost per order"]
                .contains(&&*words.text("name", "measure", 0))
        );
        assert!(words.text("letter", "the letter", 0).contains("sell 500"));
        let list: Vec<String> = (0..4).map(|n| words.text("headlines", "headline", n)).collect();
        assert!(list.iter().all(|one| list.iter().filter(|other| one == *other).count() == 1));
    }

    #[test]
    fn a_revision_is_judged_better() {
        let first = Words::of("- Product: lamp").unwrap();
        let second = Words::of("- Product: lamp\nThis is revision 1.").unwrap();
        assert!(first.share("score", 0) < 0.8 && second.share("score", 0) > 0.8);
    }
}
