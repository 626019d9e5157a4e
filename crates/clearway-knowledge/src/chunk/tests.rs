use proptest::prelude::*;

use super::*;
use crate::outline::Outline;

const SMALL: ChunkOptions = ChunkOptions { max_tokens: 12, overlap_tokens: 5 };

fn markdown(text: &str, options: &ChunkOptions) -> Vec<Chunk> {
    chunk("d", text, &Outline::markdown(text).blocks, options)
}

#[test]
fn headings_divide_and_make_the_path() {
    let text = "# Guide\n\nHello there.\n\n## Setup\n\nFirst this. Then that.\n\n# End\n\nBye.\n";
    let chunks = markdown(text, &ChunkOptions::default());
    let seen: Vec<_> = chunks.iter().map(|c| (c.section_path.join("/"), &*c.content)).collect();
    assert_eq!(
        seen,
        [
            ("Guide".to_owned(), "Hello there."),
            ("Guide/Setup".to_owned(), "First this. Then that."),
            ("End".to_owned(), "Bye."),
        ]
    );
    assert_eq!(chunks[1].section_title.as_deref(), Some("Setup"));
    assert_eq!(&*chunks[2].id, "d#2");
}

#[test]
fn a_heading_without_text_is_a_chunk_unless_another_is_below_it() {
    let chunks = markdown("# A\n\n## B\n\n## C\n\ntext\n", &ChunkOptions::default());
    let seen: Vec<_> = chunks.iter().map(|c| &*c.content).collect();
    assert_eq!(seen, ["B", "text"]);
}

#[test]
fn sentences_stay_whole_and_the_end_is_repeated() {
    let text =
        "One two three four five. Six seven. Eight nine ten eleven twelve. Thirteen fourteen.";
    let chunks = chunk("d", text, &Outline::plain(text).blocks, &SMALL);
    let seen: Vec<_> = chunks.iter().map(|c| &*c.content).collect();
    assert_eq!(
        seen,
        [
            "One two three four five. Six seven.",
            "Six seven. Eight nine ten eleven twelve.",
            "Thirteen fourteen."
        ]
    );
}

#[test]
fn an_edit_leaves_the_hashes_of_other_sections_alone() {
    let before = markdown("# A\n\nOne.\n\n# B\n\nTwo.\n", &ChunkOptions::default());
    let after = markdown("# A\n\nOne and more.\n\n# B\n\nTwo.\n", &ChunkOptions::default());
    assert_ne!(before[0].hash, after[0].hash);
    assert_eq!(before[1].hash, after[1].hash);
}

#[test]
fn markdown_tells_title_links_and_front_matter() {
    let text = "---\ntitle: The plan\ntags: [alpha, 'beta']\nowners:\n  - Ann\n---\n\n# Plan\n\nSee [[Other Note]] and [this](docs/x.md#part).\n";
    let outline = Outline::markdown(text);
    assert_eq!(outline.title.as_deref(), Some("The plan"));
    assert_eq!(outline.links, ["Other Note", "docs/x.md"]);
    let front: Vec<_> = outline.front.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(front, ["title=The plan", "tags=alpha", "tags=beta", "owners=Ann"]);
}

proptest! {
    #[test]
    fn every_chunk_is_its_span_within_budget(text in "(#{1,3} \\PC{0,9}\n|\\PC{0,40}\n|\n|[a-z]{1,90} |[.!? 漢字é]{1,9}|```\n){0,30}", markdown in any::<bool>()) {
        let outline = if markdown { Outline::markdown(&text) } else { Outline::plain(&text) };
        let chunks = chunk("d", &text, &outline.blocks, &SMALL);
        let chars: Vec<char> = text.chars().collect();
        for chunk in &chunks {
            let cited: String = chars[chunk.span.clone()].iter().collect();
            prop_assert_eq!(&cited, &*chunk.content);
            prop_assert!(chunk.tokens <= SMALL.max_tokens + 1, "{} tokens", chunk.tokens);
        }
        // Whatever is a word of plain text is found again.
        if !markdown {
            let joined: String = chunks.iter().map(|c| &*c.content).collect::<Vec<_>>().join(" ");
            for word in text.split_whitespace().filter(|word| word.chars().all(|c| c.is_ascii_lowercase()) && word.len() < 9) {
                prop_assert!(joined.contains(word));
            }
        }
    }
}
