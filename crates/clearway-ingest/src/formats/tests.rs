use std::io::{Cursor, Write};

use zip::write::{SimpleFileOptions, ZipWriter};

use super::*;

fn archive(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in parts {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// Blocks as `h1 Title | p Text`.
fn shown(parsed: &Parsed) -> String {
    let block = |block: &Block| {
        let text = parsed.text[block.span.clone()].replace('\n', "\\n");
        match block.kind {
            BlockKind::Heading(level) => format!("h{level} {text}"),
            BlockKind::Paragraph => format!("p {text}"),
            BlockKind::Verbatim => format!("v {text}"),
        }
    };
    parsed.blocks.iter().map(block).collect::<Vec<_>>().join(" | ")
}

fn trouble(name: &str, bytes: &[u8]) -> TroubleKind {
    parse(name, bytes).unwrap_err().kind
}

#[test]
fn markdown_keeps_its_source() {
    let text =
        "---\ntitle: Pricing\ntags: [money, plans]\n---\n# Plans\n\nBasic is [free](free.md).\n";
    let mut parsed = parse("a.md", text.as_bytes()).unwrap();
    tidy(&mut parsed, 1 << 20);
    assert_eq!(parsed.title.as_deref(), Some("Pricing"));
    assert_eq!(parsed.text, text);
    assert_eq!(parsed.links, ["free.md"]);
    assert!(shown(&parsed).starts_with("h1 Plans | p Basic is"), "{}", shown(&parsed));
}

#[test]
fn html_is_what_people_see() {
    let page = "<html><head><title>A  page</title><style>p{}</style></head><body>\
        <nav>menu</nav><h2>Head<b>ing</b></h2><p>One <i>two</i>\n three<br>four</p>\
        <script>bad()</script><ul><li>first<li>second <a href='/x'>there</a></ul>\
        <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table></body>";
    let parsed = parse("x.html", page.as_bytes()).unwrap();
    assert_eq!(parsed.title.as_deref(), Some("A page"));
    assert_eq!(parsed.links, ["/x"]);
    assert_eq!(
        shown(&parsed),
        "h2 Heading | p One two three\\nfour | p first\\nsecond there | p a | b\\n1 | 2"
    );
}

#[test]
fn deeply_nested_html_is_no_trouble() {
    let page = format!("{}text", "<div><b>".repeat(5_000));
    assert_eq!(parse("x.html", page.as_bytes()).unwrap().text, "text");
}

#[test]
fn word_documents() {
    let document = r#"<?xml version="1.0"?><w:document xmlns:w="w" xmlns:r="r"><w:body>
        <w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>Terms &amp; more</w:t></w:r></w:p>
        <w:p><w:r><w:t xml:space="preserve">Pay within </w:t></w:r><w:hyperlink r:id="r1"><w:r><w:t>30 days</w:t></w:r></w:hyperlink></w:p>
        <w:tbl><w:tr><w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc><w:tc><w:p><w:r><w:t>b</w:t></w:r></w:p></w:tc></w:tr></w:tbl>
        </w:body></w:document>"#;
    let rels = r#"<Relationships><Relationship Id="r1" Target="https://x.example" TargetMode="External"/></Relationships>"#;
    let core = "<cp:coreProperties><dc:title>Contract</dc:title></cp:coreProperties>";
    let parts = [
        ("word/document.xml", document.as_bytes()),
        ("word/_rels/document.xml.rels", rels.as_bytes()),
        ("docProps/core.xml", core.as_bytes()),
    ];
    let parsed = parse("c.docx", &archive(&parts)).unwrap();
    assert_eq!(parsed.title.as_deref(), Some("Contract"));
    assert_eq!(shown(&parsed), "h1 Terms & more | p Pay within 30 days | v a  | b");
    assert_eq!(parsed.links, ["https://x.example"]);
}

#[test]
fn presentations_have_a_page_for_each_slide() {
    let slide = |title: &str, text: &str| {
        format!(
            r#"<p:sld xmlns:p="p" xmlns:a="a"><p:sp><p:nvPr><p:ph type="title"/></p:nvPr><a:p><a:r><a:t>{title}</a:t></a:r></a:p></p:sp>
            <p:sp><a:p><a:r><a:t>{text}</a:t></a:r></a:p></p:sp></p:sld>"#
        )
    };
    let (ten, two) = (slide("Last", "bye"), slide("First", "hello"));
    let parts =
        [("ppt/slides/slide10.xml", ten.as_bytes()), ("ppt/slides/slide2.xml", two.as_bytes())];
    let parsed = parse("d.pptx", &archive(&parts)).unwrap();
    assert_eq!(shown(&parsed), "h1 Slide 2: First | v hello | h1 Slide 10: Last | v bye");
    assert_eq!(parsed.blocks[3].page, Some(10));
}

#[test]
fn rows_say_their_columns() {
    let parsed = parse("t.csv", b"name;price\r\nBasic;10\r\n\"Pro; max\";20\r\n").unwrap();
    assert_eq!(parsed.text, "name: Basic; price: 10\nname: Pro; max; price: 20");
}

#[test]
fn json_is_flat() {
    let parsed =
        parse("a.json", br#"{"title":"T","a":{"b":[1,2]},"c":[{"d":true}],"e":null}"#).unwrap();
    assert_eq!(parsed.text, "title: T\na.b: 1, 2\nc.0.d: true");
    let lines = parse("a.jsonl", b"{\"a\":1}\n\n{\"a\":2}\n").unwrap();
    assert_eq!(lines.text, "a: 1\n\na: 2");
    let lines = parse("a.jsonl", b"{\"a\":1}\n{\n{\"a\":2}\n").unwrap();
    assert!(lines.text.contains("a: 1") && lines.text.contains("a: 2"), "{lines:?}");
    assert!(lines.notes.len() == 1 && lines.notes[0].contains("line 2"), "{lines:?}");
    assert_eq!(trouble("a.jsonl", b"{\n{"), TroubleKind::Broken);
}

#[test]
fn texts_of_other_encodings() {
    assert_eq!(parse("a.txt", b"caf\xe9\r\nx").unwrap().text, "caf\u{e9}\nx");
    assert_eq!(parse("a.txt", b"\xff\xfea\0b\0").unwrap().text, "ab");
    assert_eq!(parse("a.txt", b"\xef\xbb\xbfab").unwrap().text, "ab");
}

/// The simplest PDF that says something.
fn pdf(text: &str) -> Vec<u8> {
    let stream = format!("BT /F1 24 Tf 100 700 Td ({text}) Tj ET");
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>".to_owned(),
        format!("<< /Length {} >>\nstream\n{stream}\nendstream", stream.len()),
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
    ];
    let mut out = String::from("%PDF-1.4\n");
    let mut places = Vec::new();
    for (number, object) in objects.iter().enumerate() {
        places.push(out.len());
        out += &format!("{} 0 obj\n{object}\nendobj\n", number + 1);
    }
    let start = out.len();
    out += &format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    places.iter().for_each(|at| out += &format!("{at:010} 00000 n \n"));
    out += &format!(
        "trailer << /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF",
        objects.len() + 1
    );
    out.into_bytes()
}

#[test]
fn pdf_pages() {
    let parsed = parse("a.pdf", &pdf("Hello knowledge")).unwrap();
    assert_eq!(shown(&parsed), "p Hello knowledge");
    assert_eq!(parsed.blocks[0].page, Some(1));
}

#[test]
fn bad_files_are_told_apart() {
    assert_eq!(trouble("a.pdf", b"no pdf at all"), TroubleKind::Broken);
    assert_eq!(trouble("a.pdf", &pdf("x")[..120]), TroubleKind::Broken);
    let locked = String::from_utf8(pdf("x")).unwrap().replace(
        "/Root 1 0 R >>",
        "/Root 1 0 R /Encrypt << /Filter /Standard /V 1 /R 2 /O (aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa) /U (bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb) /P -4 >> /ID [(x) (x)] >>",
    );
    assert_eq!(trouble("a.pdf", locked.as_bytes()), TroubleKind::Encrypted);
    assert_eq!(trouble("a.docx", b"PK\x03\x04 broken"), TroubleKind::Broken);
    let compound = [0xD0, 0xCF, 0x11, 0xE0, 0xA1, 0xB1, 0x1A, 0xE1, 0, 0];
    assert_eq!(trouble("a.docx", &compound), TroubleKind::Encrypted);
    assert_eq!(trouble("a.doc", &compound), TroubleKind::Unsupported);
    assert_eq!(trouble("a.md", b"\x7fELF\x02\x01\0\0\0"), TroubleKind::Binary);
    let zeros = vec![b' '; 40 << 20];
    let bomb = archive(&[("word/document.xml", &zeros)]);
    assert!(bomb.len() < 1 << 20);
    assert_eq!(trouble("a.docx", &bomb), TroubleKind::Bomb);
    assert_eq!(trouble("a.xlsx", &archive(&[("xl/workbook.xml", &zeros)])), TroubleKind::Bomb);
}

#[test]
fn text_is_cut_where_it_must_be() {
    let mut parsed = parse("a.md", "# Ein\n\nwörter\n\nmehr".as_bytes()).unwrap();
    tidy(&mut parsed, 9);
    assert_eq!(parsed.text, "# Ein\n\nw");
    assert_eq!(parsed.notes.len(), 1);
    assert!(parsed.blocks.iter().all(|block| parsed.text.get(block.span.clone()).is_some()));
}
