//! What can be said, by what is asked for.
//!
//! Features come as they stand in a brief, as a verb ("charges a phone") or as a noun ("audit trail"), so they go behind
//! a colon or stand alone, where both read well.

/// What a property wants to hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Call,
    Channel,
    Role,
    Person,
    Hashtag,
    Headline,
    Quote,
    Format,
    Feeling,
    Target,
    Measure,
    Risk,
    Remedy,
    Improvement,
    Strength,
    Verdict,
    Milestone,
    Next,
    Want,
    Picture,
    Situation,
    Tone,
    Greeting,
    Letter,
    Reason,
    Sentence,
}

impl Kind {
    /// By a property's name and its description, in lower case.
    pub(super) fn of(name: &str, about: &str) -> Self {
        let is =
            |words: &[&str]| words.iter().any(|word| name.contains(word) || about.contains(word));
        // The first that fits: what is said more precisely comes before what is said in passing.
        let rules: [(bool, Self); 25] = [
            (about.contains("for this persona"), Self::Sentence),
            (is(&["cta", "call to action", "to test"]), Self::Call),
            (["primary", "secondary"].contains(&name), Self::Call),
            (about.contains("channel is for") || name == "goal", Self::Role),
            (name == "channel" || about.starts_with("channel"), Self::Channel),
            (is(&["persona", "first name"]), Self::Person),
            (about.contains("hashtag"), Self::Hashtag),
            (["tagline", "headline", "headlines", "title"].contains(&name), Self::Headline),
            (is(&["quote", "would say"]), Self::Quote),
            (about.contains("format"), Self::Format),
            (is(&["emotion", "feeling"]), Self::Feeling),
            (about.contains("target value"), Self::Target),
            (about == "measure" || name == "kpi", Self::Measure),
            (is(&["do about it", "answer to"]), Self::Remedy),
            (is(&["risk", "go wrong", "doubt", "objection", "fear", "problem"]), Self::Risk),
            (is(&["holds them back"]), Self::Risk),
            (is(&["next step", "happens next"]), Self::Next),
            (is(&["improvement", "change"]), Self::Improvement),
            (is(&["strength", "what is good"]), Self::Strength),
            (name == "verdict", Self::Verdict),
            (is(&["milestone", "deliverable", "task", "activity", "priorit"]), Self::Milestone),
            (is(&["picture", "scene", "image", "visual", "motif", "is seen"]), Self::Picture),
            (is(&["mood", "tone", "style"]), Self::Tone),
            (is(&["greeting", "salutation"]), Self::Greeting),
            (name == "letter", Self::Letter),
        ];
        let late: [(bool, Self); 3] = [
            (is(&["how this was decided", "reason"]), Self::Reason),
            (is(&["life and work", "situation", "biography"]), Self::Situation),
            (is(&["want", "need", "hope", "motive"]), Self::Want),
        ];
        let mut all = rules.into_iter().chain(late);
        all.find(|(fits, _)| *fits).map_or(Self::Sentence, |(_, kind)| kind)
    }
}

/// What the phrases are about.
#[derive(Clone, Copy, Debug)]
pub(super) struct About<'a> {
    pub(super) subject: &'a str,
    pub(super) audience: &'a str,
    pub(super) feature: &'a str,
    /// Another one, where there is another.
    pub(super) second: &'a str,
    pub(super) goal: &'a str,
}

/// All that fits; callers choose.
pub(super) fn phrases(kind: Kind, about: About<'_>) -> Vec<String> {
    match kind {
        Kind::Channel
        | Kind::Role
        | Kind::Person
        | Kind::Format
        | Kind::Feeling
        | Kind::Target
        | Kind::Measure
        | Kind::Tone
        | Kind::Reason => fixed(kind).iter().map(|&text| text.to_owned()).collect(),
        Kind::Call | Kind::Hashtag | Kind::Headline | Kind::Quote | Kind::Want | Kind::Picture => {
            short(kind, about)
        }
        Kind::Risk
        | Kind::Remedy
        | Kind::Improvement
        | Kind::Strength
        | Kind::Verdict
        | Kind::Milestone
        | Kind::Next => work(kind, about),
        Kind::Situation | Kind::Greeting | Kind::Letter | Kind::Sentence => long(kind, about),
    }
}

/// Phrases that speak of nothing in particular.
fn fixed(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Channel => &["Instagram", "Newsletter", "Local posters", "Podcast", "LinkedIn"],
        Kind::Role => &[
            "Shows it in use, in a few seconds",
            "Keeps in touch until the time is right",
            "Reaches people where they are anyway",
            "Explains what takes longer than a glance",
            "Lets others tell it in their own words",
        ],
        Kind::Person => &["Mara, the planner", "Jonas, the sceptic", "Aylin, the first to try"],
        Kind::Format => &["4:5 portrait", "16:9 film, 20 s", "A2 poster", "9:16 story"],
        Kind::Feeling => &["relief", "curiosity", "pride", "calm"],
        Kind::Target => &["+15 % in eight weeks", "500 in the first month", "3 of 10 come back"],
        Kind::Measure => {
            &["Orders", "Return visits", "Sign-ups for the newsletter", "Cost per order"]
        }
        Kind::Tone => &[
            "Calm and direct, with a dry joke now and then",
            "Warm, like advice from a friend who has tried it",
            "Precise and quick, every sentence a fact",
            "Curious, with more questions than exclamation marks",
        ],
        _ => &[
            "Most of it goes where people decide; the rest makes sure that they have heard of it before",
            "Little at first, until the figures of the first weeks say where more of it pays",
            "Half for what can be measured at once, half for what is remembered",
        ],
    }
}

fn short(kind: Kind, about: About<'_>) -> Vec<String> {
    let About { subject, audience, feature, .. } = about;
    let (thing, what) = (capital(subject), capital(feature));
    match kind {
        Kind::Call => vec![
            format!("Try {subject}"),
            format!("See {subject} at work"),
            format!("Get to know {subject}"),
            format!("Ask for {subject}"),
        ],
        Kind::Hashtag => {
            let joined = |text: &str| text.split_whitespace().map(capital).collect::<String>();
            vec![joined(subject), joined(feature), "NewHere".to_owned()]
        }
        Kind::Headline => vec![
            format!("{thing}: {feature}"),
            format!("Made for {audience}"),
            format!("{what}. That is all"),
            format!("{thing} does the rest"),
            format!("Meet {subject}"),
            "One thing less to think about".to_owned(),
            format!("The short answer is {subject}"),
            format!("{what}, every day"),
        ],
        Kind::Quote => vec![
            format!("If it is true, I am in: {feature}."),
            "Show me that it works, and I will tell my friends.".to_owned(),
            format!("I have waited for something like {subject}."),
            "I do not want to read about it. I want to try it.".to_owned(),
        ],
        Kind::Want => vec![
            format!("{feature}, without having to think about it"),
            "an evening that is not spent on instructions".to_owned(),
            "something that still works next year".to_owned(),
            format!("to be asked where {subject} is from"),
        ],
        _ => vec![
            format!("{thing} on a table in the morning, nobody in the picture"),
            format!("Hands that are busy with something else while {subject} does its part"),
            format!("Close up, in daylight: {feature}"),
            format!("Before and after: the same place without {subject} and with it"),
        ],
    }
}

fn work(kind: Kind, about: About<'_>) -> Vec<String> {
    let About { subject, audience, feature, .. } = about;
    let thing = capital(subject);
    match kind {
        Kind::Risk => vec![
            format!("It sounds too good until one has seen it: {feature}"),
            format!("There is something at home already that does nearly what {subject} does"),
            format!("Nobody looks for {subject}, because nobody knows that it exists"),
            "The first weeks cost more than they bring in".to_owned(),
        ],
        Kind::Remedy => vec![
            "Show it in the first three seconds, before anything is claimed".to_owned(),
            "Let people try it, and take it back without questions".to_owned(),
            "Start small, look every Monday, and move the money".to_owned(),
        ],
        Kind::Improvement => vec![
            format!("Say in the first line what {subject} is"),
            format!("Show instead of claiming: {feature}"),
            "Use one call to action on every channel".to_owned(),
            format!("Speak to {audience}, not about them"),
        ],
        Kind::Strength => vec![
            "One idea carries every piece".to_owned(),
            format!("The copy sounds like {audience} talk"),
            format!("Nothing is promised that {subject} cannot keep"),
        ],
        Kind::Verdict => vec![
            format!(
                "It fits the brief and stays with it. {thing} is recognisable on every channel."
            ),
            format!("The idea is clear: {feature}. The opening could come to the point sooner."),
        ],
        Kind::Milestone => vec![
            format!("First pieces on one point: {feature}"),
            format!("Ten conversations with {audience}"),
            format!("{thing} on all channels"),
            "Figures of the first two weeks, and what follows from them".to_owned(),
        ],
        _ => vec![
            "Look at the page together and say what is wrong".to_owned(),
            format!("Send three photographs of {subject}"),
            "Agree on the day of the start".to_owned(),
            "Name the person who answers questions from customers".to_owned(),
        ],
    }
}

fn long(kind: Kind, about: About<'_>) -> Vec<String> {
    let About { subject, audience, feature, second, goal } = about;
    let (thing, what) = (capital(subject), capital(feature));
    match kind {
        Kind::Situation => vec![
            "Works shifts and plans the week on Sunday evening. Buys little, and keeps it long."
                .to_owned(),
            format!(
                "Has tried three things that promised the same: {feature}. One of them is still in use."
            ),
            "Shares a flat and a calendar. Decides quickly when a friend has decided before."
                .to_owned(),
            "Reads the small print first and the headline last. Tells others what turned out well."
                .to_owned(),
        ],
        Kind::Greeting => {
            vec!["Dear all,".to_owned(), "Hello,".to_owned(), "Good morning,".to_owned()]
        }
        Kind::Letter => vec![
            format!(
                "The campaign for {subject} is ready. It speaks to {audience}, and it keeps to what you told us: {feature}, \
                 and {second}. What it is for is clear: {goal}. Have a look at the page first, then at the calendar; \
                 everything in it can be changed until the day before the start."
            ),
            format!(
                "Here is what we have made for {subject}. One idea, the same on every channel, and no promise that you \
                 could not keep. If one sentence stays with {audience}, let it be this one: {feature}. We are aiming for \
                 what you asked for: {goal}."
            ),
        ],
        _ => vec![
            format!("{thing} is made for {audience}: {feature}, every day, without a manual."),
            format!("{what}. That is what {audience} notice first about {subject}."),
            format!("Most things ask for attention. {thing} gives some back: {feature}."),
            format!("After a week nobody asks any more what {subject} is good for: {feature}."),
            format!("There are longer ways to do it. {thing} is the short one: {feature}."),
            format!("The wish was a simple one: {feature}. {thing} does just that."),
            format!("{thing} takes a minute to explain and a day to get used to: {feature}."),
            format!("Two things are new about {subject}. One: {feature}. Two: {second}."),
        ],
    }
}

pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
