//! Words for made-up answers, taken from the prompt.
//!
//! A prompt that lists facts (`- Product: a lamp`) gets answers that speak of them, so that a document
//! made of simulated answers can be read and differs from one brief to the next. The same prompt
//! always gets the same answer.

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

    /// One of several features that a fact lists with semicolons.
    fn feature(&self, name: &str, index: u64) -> &str {
        let list = self.fact(&["stands out", "feature", "goal"]).unwrap_or("what it does well");
        let all: Vec<&str> = list.split(';').map(str::trim).collect();
        all[self.pick(name, index, all.len() as u64) as usize]
    }

    /// A share of the range, for numbers.
    pub(crate) fn share(&self, name: &str, index: u64) -> f64 {
        let share = self.pick(name, index, 1000) as f64 / 1000.0;
        match name {
            "score" if self.revised => 0.82 + share * 0.15,
            "score" => 0.5 + share * 0.25,
            _ => share,
        }
    }

    /// A text for a property; `about` is its description.
    pub(crate) fn text(&self, name: &str, about: &str, index: u64) -> String {
        let about = about.to_lowercase();
        let (subject, audience) = (self.subject(), self.audience());
        let feature = self.feature(name, index);
        let choose = |list: &[String]| {
            list[(index + self.pick(name, 0, list.len() as u64)) as usize % list.len()].clone()
        };
        let given =
            |list: &[&str]| choose(&list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        if name.contains("cta")
            || name == "primary"
            || name == "secondary"
            || about.contains("call to action")
            || about.contains("to test")
        {
            return choose(&[
                format!("Try {subject}"),
                format!("See {subject} at work"),
                format!("Get {subject} today"),
                format!("Find out about {feature}"),
            ]);
        }
        if name == "channel" || about.starts_with("channel") || about.starts_with("the channel") {
            return given(&["Instagram", "Newsletter", "Local posters", "Podcast", "LinkedIn"]);
        }
        if about.contains("persona") || about.contains("first name") {
            return given(&["Mara, the planner", "Jonas, the sceptic", "Aylin, the first to try"]);
        }
        if about.contains("hashtag") {
            let word = subject.split_whitespace().collect::<String>();
            return choose(&[word, feature.split_whitespace().collect(), "NewHere".to_owned()]);
        }
        if ["tagline", "headline", "headlines", "title"].contains(&name) {
            return choose(&[
                format!("{}: {feature}", capital(subject)),
                format!("{}, at last", capital(feature)),
                format!("Made for {audience}"),
                format!("{} does the rest", capital(subject)),
                format!("Less effort, more {feature}"),
            ]);
        }
        if name == "quote" || about.contains("would say") {
            return choose(&[
                format!("If {subject} really is {feature}, I am in."),
                "Show me that it works, and I will tell my friends.".to_owned(),
                format!("I have waited for something like {subject}."),
            ]);
        }
        if about.contains("format") {
            return given(&["4:5 portrait", "16:9 film, 20 s", "A2 poster", "Story, 9:16"]);
        }
        if about.contains("feeling") || name == "emotion" {
            return given(&["relief", "curiosity", "pride"]);
        }
        if about.contains("target value") {
            return given(&["+15 % in eight weeks", "500 in the first month", "3 of 10 come back"]);
        }
        let what = capital(if about.is_empty() { name } else { &about }.trim());
        choose(&[
            format!("{what}: {subject} is for {audience}, because of {feature}."),
            format!("{what}: {audience} choose {subject} when they see {feature} for themselves."),
            format!(
                "{what}: begin with {feature}, then show what {subject} changes in a normal week."
            ),
            format!(
                "{what}: {subject} keeps its promise where {audience} need it, with {feature}."
            ),
        ])
    }
}

/// A text for a colour that a pattern asks for.
pub(crate) fn colour(number: u64) -> String {
    const COLOURS: &[&str] =
        &["#1f4d7a", "#e07a3f", "#2a9d8f", "#f2c14e", "#7b3f9e", "#c8445c", "#3d5a40", "#264653"];
    COLOURS[(number % COLOURS.len() as u64) as usize].to_owned()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn shortened(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
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
    fn a_revision_is_judged_better() {
        let first = Words::of("- Product: lamp").unwrap();
        let second = Words::of("- Product: lamp\nThis is revision 1.").unwrap();
        assert!(first.share("score", 0) < 0.8 && second.share("score", 0) > 0.8);
    }
}
