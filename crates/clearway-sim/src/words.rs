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
        // What the thing can do says more about it than what its maker wants.
        let known = ["stands out", "feature", "goal"].into_iter().find_map(|key| self.fact(&[key]));
        let list = known.unwrap_or("what it does well");
        let all: Vec<&str> = list.split(';').map(str::trim).collect();
        all[self.pick(name, index, all.len() as u64) as usize]
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
        self.sentence(name, &about, index)
    }

    /// A sentence for everything that has no form of its own.
    fn sentence(&self, name: &str, about: &str, index: u64) -> String {
        let (subject, audience) = (self.subject(), self.audience());
        let feature = self.feature(name, index);
        let (thing, what) = (capital(subject), capital(feature));
        let is =
            |words: &[&str]| words.iter().any(|word| name.contains(word) || about.contains(word));
        let list = if is(&["risk", "doubt", "objection", "fear", "problem"]) {
            [
                format!("It sounds too good: {feature} has to be seen to be believed"),
                format!("There is something at home already that does nearly what {subject} does"),
                format!("Nobody looks for {subject}, because nobody knows that it exists"),
                "The first weeks cost more than they bring in".to_owned(),
            ]
        } else if is(&["improvement", "change", "next step"]) {
            [
                format!("Say in the first line what {subject} is"),
                format!("Show {feature} instead of claiming it"),
                "Use one call to action on every channel".to_owned(),
                format!("Speak to {audience}, not about them"),
            ]
        } else if is(&["milestone", "deliverable", "task", "activity", "priority"]) {
            [
                format!("First pieces that show {feature}"),
                format!("Ten conversations with {audience}"),
                format!("{thing} on all channels"),
                "Figures of the first two weeks, and what follows from them".to_owned(),
            ]
        } else if is(&["want", "need", "hope", "motive"]) {
            [
                format!("{feature}, without having to think about it"),
                "an evening that is not spent on instructions".to_owned(),
                "something that still works next year".to_owned(),
                format!("to be asked where {subject} is from"),
            ]
        } else if is(&["picture", "scene", "image", "visual", "motif"]) {
            [
                format!("{thing} on a kitchen table in the morning, nobody in the picture"),
                format!("Hands that use {subject} while they do something else"),
                format!("{what}, close up, in daylight"),
                format!("Before and after: the same room without {subject} and with it"),
            ]
        } else if is(&["life and work", "situation", "biography"]) {
            [
                "Works shifts and plans the week on Sunday evening. Buys little, and keeps it long.".to_owned(),
                format!("Has tried three things that promised {feature}. One of them is still in use."),
                "Shares a flat and a calendar. Decides quickly when a friend has decided before.".to_owned(),
                "Reads the small print first and the headline last. Tells others what turned out well.".to_owned(),
            ]
        } else {
            [
                format!("{thing} is made for {audience}: {feature}, every day, without a manual."),
                format!("{what}. That is what {audience} notice first, and what they tell others."),
                format!("Most things ask for attention. {thing} gives some back: {feature}."),
                format!(
                    "One week with {subject}, and {feature} is something one no longer thinks about."
                ),
            ]
        };
        list[(index + self.pick(name, 0, list.len() as u64)) as usize % list.len()].clone()
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
