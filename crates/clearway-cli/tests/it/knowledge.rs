//! Documents from a folder and from uploads, through the real binary.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clearway_testkit::{World, until};
use serde_json::{Value, json};

use crate::binary;

/// For everything to be read, indexed and embedded.
const SETTLED: Duration = Duration::from_secs(60);

fn source(folder: &Path, more: &str) -> String {
    format!("[knowledge.docs]\nfolder = {:?}\n{more}\n", folder.display().to_string())
}

const AGENT: &str = "
[agents.notes]
model = \"cofounder\"
prompt = \"Be brief.\"
tools = [\"search:docs\", \"open:docs\"]
cite = \"required\"

[doors.knowledge]
agent = \"notes\"
";

async fn settled(world: &World) -> Result<Value> {
    until("the source is settled", SETTLED, async || Ok(status(world).await?["settled"] == true))
        .await?;
    status(world).await
}

async fn status(world: &World) -> Result<Value> {
    Ok(world.client().get("/knowledge/docs").send().await?.expect(200)?.json())
}

async fn search(world: &World, body: Value) -> Result<Value> {
    Ok(world.client().post("/knowledge/search").json(&body).send().await?.expect(200)?.json())
}

fn paths(found: &Value) -> Vec<String> {
    let chunks = found["chunks"].as_array().into_iter().flatten();
    chunks.map(|chunk| chunk["path"].as_str().unwrap_or_default().to_owned()).collect()
}

fn write(folder: &Path, name: &str, text: impl AsRef<[u8]>) -> Result<()> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, text).context(name.to_owned())
}

#[tokio::test]
async fn a_folder_is_found_watched_and_cited() -> Result<()> {
    let docs = tempfile::tempdir()?;
    write(docs.path(), "prices/plans.md", "# Plans\n\nThe basic plan costs nine euros a month.\n")?;
    write(docs.path(), "people/anna.md", "# Anna\n\nAnna looks after the greenhouse in Ghent.\n")?;
    let folder = docs.path().to_owned();
    let world = World::new(binary())
        .config(|config| {
            config.extra = source(&folder, "search = { similarity_threshold = 0.05 }") + AGENT
        })
        .start()
        .await?;
    let report = settled(&world).await?;
    assert_eq!((&report["documents"], &report["failed"]), (&json!(2), &json!(0)), "{report}");
    let found = search(
        &world,
        json!({"query": "what does the basic plan cost", "similarity_threshold": 0.05}),
    )
    .await?;
    assert_eq!(paths(&found)[0], "prices/plans.md", "{found}");
    let chunk = &found["chunks"][0];
    for field in [
        "id",
        "doc_id",
        "chunk_index",
        "content",
        "section_path",
        "section_title",
        "similarity",
        "tokens",
        "scores",
        "span",
    ] {
        assert!(!chunk[field].is_null(), "{field}: {chunk}");
    }

    // Documents and what they name are one graph, at both addresses.
    let graph =
        world.client().get("/knowledge/docs/graph?entity=Anna").send().await?.expect(200)?;
    let graph = graph.json();
    let kinds: Vec<&str> = graph["nodes"]
        .as_array()
        .context("nodes")?
        .iter()
        .filter_map(|n| n["kind"].as_str())
        .collect();
    assert_eq!(kinds[0], "document", "{graph}");
    assert!(kinds.contains(&"entity") && graph.to_string().contains("Ghent"), "{graph}");
    let door = world
        .client()
        .get("/knowledge-agent/knowledge/graph?entity=Ghent")
        .send()
        .await?
        .expect(200)?;
    assert!(door.json()["graph"].to_string().contains("people/anna.md"), "{}", door.text());

    // Exact words are found in headings, too, and where they stand.
    let at = "/knowledge-agent/knowledge/search/content?query=plans";
    let hits = world.client().get(at).send().await?.expect(200)?.json();
    assert_eq!(
        (&hits["results"][0]["line"], &hits["results"][0]["at"]),
        (&json!("# Plans"), &json!(0)),
        "{hits}"
    );
    assert_eq!(hits["results"].as_array().map(Vec::len), Some(1), "{hits}");
    // A way needs two ends.
    for at in ["/knowledge/docs/graph?to=Ghent", "/knowledge-agent/knowledge/graph?to=Ghent"] {
        world.client().get(at).send().await?.expect(400)?;
    }

    // Nothing found explains itself.
    let nothing = search(&world, json!({"query": "zeppelin"})).await?;
    assert_eq!(paths(&nothing), [""; 0]);
    assert_eq!(nothing["explanation"]["documents_in_scope"], 2, "{nothing}");
    for odd in ["the of and", "\u{1f600}\u{1f600}", &"word ".repeat(20_000)] {
        search(&world, json!({"query": odd})).await.context("an odd query")?;
    }

    // A change, a new file and a deletion reach the index by themselves.
    write(docs.path(), "people/anna.md", "# Anna\n\nAnna looks after the orchard in Namur.\n")?;
    write(docs.path(), "people/new.md", "# Bert\n\nBert repairs tractors.\n")?;
    std::fs::remove_file(docs.path().join("prices/plans.md"))?;
    until("the changes are indexed", SETTLED, async || {
        let found =
            search(&world, json!({"query": "orchard Namur", "similarity_threshold": 0.01})).await?;
        let gone =
            search(&world, json!({"query": "basic plan", "similarity_threshold": 0.01})).await?;
        let new =
            search(&world, json!({"query": "tractors", "similarity_threshold": 0.01})).await?;
        Ok(paths(&found).contains(&"people/anna.md".to_owned())
            && paths(&new).contains(&"people/new.md".to_owned())
            && !paths(&gone).contains(&"prices/plans.md".to_owned()))
    })
    .await?;

    // The simulator repeats what it is asked, sources included, so its answer cites [1].
    let body = json!({"message": "who repairs tractors?", "conversation_history": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]});
    let answer =
        world.client().post("/knowledge-agent/chat").json(&body).send().await?.expect(200)?.json();
    for field in ["response", "categories", "knowledge_updates", "suggested_actions"] {
        assert!(!answer[field].is_null(), "{field}: {answer}");
    }
    world.finish().await
}

#[tokio::test]
async fn bad_files_are_listed_and_hurt_nobody() -> Result<()> {
    let docs = tempfile::tempdir()?;
    let outside = tempfile::tempdir()?;
    write(docs.path(), "good.md", "# Good\n\nA sound document about bicycles.\n")?;
    write(docs.path(), "picture.md", b"\x89PNG\r\n\x1a\n\0\0\0\0")?;
    write(docs.path(), "broken.pdf", "%PDF-1.4 nothing of the kind")?;
    write(docs.path(), "broken.docx", b"PK\x03\x04 and then nothing")?;
    write(docs.path(), "locked.docx", b"\xD0\xCF\x11\xE0\xA1\xB1\x1A\xE1 and more")?;
    write(docs.path(), "empty.txt", " \n")?;
    write(outside.path(), "secret.md", "the secret word is xylophone")?;
    std::os::unix::fs::symlink(outside.path().join("secret.md"), docs.path().join("link.md"))?;
    // Two gigabytes of holes.
    std::fs::File::create(docs.path().join("huge.txt"))?.set_len(2 << 30)?;
    let folder = docs.path().to_owned();
    let world =
        World::new(binary()).config(|config| config.extra = source(&folder, "")).start().await?;
    let report = settled(&world).await?;
    assert_eq!(report["documents"], 1, "{report}");
    let failures = report["failures"].as_array().context("failures")?;
    let kind = |path: &str| {
        let found = failures.iter().find(|failure| failure["path"] == path);
        found.map_or("none", |failure| failure["kind"].as_str().unwrap_or_default())
    };
    assert_eq!(kind("picture.md"), "binary", "{report}");
    assert_eq!(kind("broken.pdf"), "broken", "{report}");
    assert_eq!(kind("broken.docx"), "broken", "{report}");
    assert_eq!(kind("locked.docx"), "encrypted", "{report}");
    assert_eq!(kind("empty.txt"), "empty", "{report}");
    assert_eq!(kind("link.md"), "outside", "{report}");
    assert_eq!(kind("huge.txt"), "too_large", "{report}");
    let found =
        search(&world, json!({"query": "xylophone secret", "similarity_threshold": 0.01})).await?;
    assert_eq!(paths(&found), [""; 0], "{found}");
    assert_eq!(found["explanation"]["unread"], report["failed"], "{found}");
    assert!(found.to_string().contains("files of `docs` could not be read"), "{found}");

    // The folder vanishes: what is known stays, and the report says so.
    std::fs::rename(docs.path(), docs.path().with_extension("gone"))?;
    world.client().post("/knowledge/docs/refresh").send().await?.expect(202)?;
    until(
        "the folder is missed",
        SETTLED,
        async || Ok(!status(&world).await?["problem"].is_null()),
    )
    .await?;
    assert_eq!(status(&world).await?["documents"], 1);
    let found = search(&world, json!({"query": "xylophone"})).await?;
    assert_eq!(found["explanation"]["problems"][0]["source"], "docs", "{found}");
    assert!(found.to_string().contains("`docs` cannot be looked at"), "{found}");
    std::fs::rename(docs.path().with_extension("gone"), docs.path())?;
    world.finish().await
}

#[tokio::test]
async fn one_changed_file_of_many_costs_its_own_vectors_only() -> Result<()> {
    const FILES: usize = 200;
    let docs = tempfile::tempdir()?;
    let text = |at: usize, word: &str| {
        format!(
            "# Note {at}\n\nThe number {at} is about {word}.\n\n## More\n\nThis part of note {at} never changes.\n"
        )
    };
    for at in 0..FILES {
        write(docs.path(), &format!("{at}.md"), text(at, "apples"))?;
    }
    let folder = docs.path().to_owned();
    let mut world = World::new(binary())
        .config(|config| {
            config.extra = format!(
                "[models.embed]\nprovider = \"lab\"\nmodel = \"text-embedding-3-small\"\ndimensions = 1536\n{}",
                source(&folder, "embeddings = \"embed\"")
            );
        })
        .start()
        .await?;
    let report = settled(&world).await?;
    assert_eq!(report["documents"], FILES, "{report}");
    let before = world.sim().count("texts_embedded").await?;
    assert_eq!(before, report["chunks"].as_u64().unwrap_or(0), "each chunk once: {report}");
    write(docs.path(), "7.md", text(7, "pears"))?;
    until("the change is embedded", SETTLED, async || {
        Ok(world.sim().count("texts_embedded").await? > before
            && status(&world).await?["settled"] == true)
    })
    .await?;
    assert_eq!(world.sim().count("texts_embedded").await?, before + 1, "one chunk changed");
    let report = status(&world).await?;
    assert_eq!(report["embeddings"]["embedded"], report["chunks"], "{report}");

    // Nor does a file that is renamed, or that was away, cost anything: neither now nor after a restart.
    std::fs::rename(docs.path().join("7.md"), docs.path().join("moved.md"))?;
    until("the new name is known", SETTLED, async || {
        let listed = world.client().get("/knowledge/docs/documents").send().await?.expect(200)?;
        let listed = listed.text().to_owned();
        Ok(listed.contains("moved.md") && !listed.contains("\"7.md"))
    })
    .await?;
    let away = tempfile::tempdir()?;
    let names: Vec<_> = std::fs::read_dir(docs.path())?.collect::<std::io::Result<_>>()?;
    for name in &names {
        std::fs::rename(name.path(), away.path().join(name.file_name()))?;
    }
    until("all are gone", SETTLED, async || Ok(status(&world).await?["documents"] == 0)).await?;
    for name in &names {
        std::fs::rename(away.path().join(name.file_name()), name.path())?;
    }
    until("all are back", SETTLED, async || {
        let status = status(&world).await?;
        Ok(status["documents"] == FILES && status["settled"] == true)
    })
    .await?;
    world.kill().await?;
    world.restart().await?;
    let report = settled(&world).await?;
    assert_eq!(report["embeddings"]["embedded"], report["chunks"], "{report}");
    assert_eq!(world.sim().count("texts_embedded").await?, before + 1, "none was paid twice");
    world.finish().await
}

#[tokio::test]
async fn killed_while_it_indexes_it_finishes_after_the_next_start() -> Result<()> {
    const FILES: usize = 300;
    let docs = tempfile::tempdir()?;
    for at in 0..FILES {
        write(
            docs.path(),
            &format!("{at}.md"),
            format!("# Note {at}\n\nThe word{at} stands here.\n"),
        )?;
    }
    let folder = docs.path().to_owned();
    let mut world =
        World::new(binary()).config(|config| config.extra = source(&folder, "")).start().await?;
    until("some documents are read", SETTLED, async || {
        Ok(status(&world).await?["progress"]["done"].as_u64().unwrap_or(0) > 20)
    })
    .await?;
    world.kill().await?;
    world.restart().await?;
    let report = settled(&world).await?;
    assert_eq!(report["documents"], FILES, "{report}");
    assert_eq!(report["chunks"], FILES, "nothing double: {report}");
    let changed = report["progress"]["changed"].as_u64().unwrap_or(0);
    ensure!(changed < FILES as u64, "what was read before is not read again: {report}");
    let found = search(&world, json!({"query": "word299", "similarity_threshold": 0.01})).await?;
    assert_eq!(paths(&found)[0], "299.md", "{found}");
    world.finish().await
}

#[tokio::test]
async fn a_folder_that_comes_later_is_watched() -> Result<()> {
    // Behind a link, so that its real path is another one than the configured.
    let (real, beside) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let link = beside.path().join("link");
    std::os::unix::fs::symlink(real.path(), &link)?;
    let folder = link.join("docs");
    let world =
        World::new(binary()).config(|config| config.extra = source(&folder, "")).start().await?;
    until("it is missed", SETTLED, async || Ok(!status(&world).await?["problem"].is_null()))
        .await?;
    write(&folder, "a.md", "# One\n\nThe first.\n")?;
    world.client().post("/knowledge/docs/refresh").send().await?.expect(202)?;
    until("it is found", SETTLED, async || Ok(status(&world).await?["documents"] == 1)).await?;
    settled(&world).await?;
    write(&folder, "b.md", "# Two\n\nThe second.\n")?;
    // Less than the minute after which it is looked at anyway.
    until("a change is noticed", Duration::from_secs(30), async || {
        Ok(status(&world).await?["documents"] == 2)
    })
    .await?;
    world.finish().await
}

// ## Uploads

fn form(name: &str, text: &str) -> (String, Vec<u8>) {
    let body = format!(
        "--xx\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n\
         --xx\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{text}\r\n--xx--\r\n"
    );
    ("multipart/form-data; boundary=xx".to_owned(), body.into_bytes())
}

async fn upload(world: &World, user: &str, name: &str, text: &str) -> Result<(String, String)> {
    let (kind, body) = form(name, text);
    let file = world
        .client()
        .post("/v1/files")
        .header("x-user-id", user)
        .header("content-type", kind)
        .body(body)
        .send()
        .await?
        .expect(200)?
        .json();
    let file = file["id"].as_str().context("a file's id")?.to_owned();
    let store = world
        .client()
        .post("/v1/vector_stores")
        .header("x-user-id", user)
        .json(&json!({"name": user, "file_ids": [file]}))
        .send()
        .await?
        .expect(200)?
        .json();
    let store = store["id"].as_str().context("a store's id")?.to_owned();
    until("the file is read", SETTLED, async || {
        let at = format!("/v1/vector_stores/{store}");
        let store =
            world.client().get(at).header("x-user-id", user).send().await?.expect(200)?.json();
        Ok(store["file_counts"]["completed"] == 1)
    })
    .await?;
    Ok((file, store))
}

#[tokio::test]
async fn nobody_finds_what_is_somebody_elses() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let (ann_file, ann_store) =
        upload(&world, "ann", "plan.md", "# Plan\n\nThe treasure is buried under the oak.\n")
            .await?;
    let (_, bob_store) =
        upload(&world, "bob", "other.md", "# Other\n\nBob likes treasure hunts.\n").await?;
    let id = |store: &str| store.to_owned();
    // Ann finds it, by every way there is.
    until("ann finds her own", SETTLED, async || {
        let found = search(&world, json!({"query": "where is the treasure buried", "user_id": "ann", "similarity_threshold": 0.01})).await?;
        Ok(found.to_string().contains("oak"))
    })
    .await?;
    let at = format!("/v1/vector_stores/{ann_store}/search");
    let body = json!({"query": "treasure oak"});
    let own = world
        .client()
        .post(at.clone())
        .header("x-user-id", "ann")
        .json(&body)
        .send()
        .await?
        .expect(200)?;
    assert!(own.text().contains("oak"), "{}", own.text());
    assert_eq!(own.json()["data"][0]["file_id"], ann_file.as_str());

    // Bob, and somebody without a name, do not, whatever they ask for.
    let base =
        json!({"query": "buried treasure", "similarity_threshold": 0.000_1, "max_chunks": 100});
    let doc = search(
        &world,
        json!({"query": "treasure", "user_id": "ann", "similarity_threshold": 0.01}),
    )
    .await?;
    let doc_id = doc["chunks"][0]["doc_id"].clone();
    let variants = [
        json!({}),
        json!({"doc_ids": [doc_id]}),
        json!({"vector_store_ids": [id(&ann_store)]}),
        json!({"vector_store_ids": [id(&bob_store), id(&ann_store)]}),
        json!({"vector_store_ids": [id(&bob_store)]}),
        json!({"vector_store_ids": [id(&bob_store)], "doc_ids": [doc_id]}),
        json!({"sources": ["uploads:"]}),
        json!({"source": "uploads:"}),
        json!({"source": ann_store}),
        json!({"source": doc_id}),
        json!({"token_budget": 1_000_000}),
    ];
    for user in [json!("bob"), json!("an"), json!("ann "), json!("7:default:ann"), json!(null)] {
        for variant in &variants {
            let mut body = base.clone();
            body["user_id"] = user.clone();
            body.as_object_mut()
                .context("an object")?
                .extend(variant.as_object().context("an object")?.clone());
            let answer = world.client().post("/knowledge/search").json(&body).send().await?;
            ensure!(!answer.text().contains("oak"), "{body} found {}", answer.text());
            ensure!(answer.status < 500, "{body}: {}", answer.text());
        }
    }
    for (method, at) in [
        ("GET", format!("/v1/files/{ann_file}")),
        ("GET", format!("/v1/files/{ann_file}/content")),
        ("DELETE", format!("/v1/files/{ann_file}")),
        ("GET", format!("/v1/vector_stores/{ann_store}")),
        ("POST", format!("/v1/vector_stores/{ann_store}")),
        ("DELETE", format!("/v1/vector_stores/{ann_store}")),
        ("GET", format!("/v1/vector_stores/{ann_store}/files")),
        ("GET", format!("/v1/vector_stores/{ann_store}/files/{ann_file}")),
        ("GET", format!("/v1/vector_stores/{ann_store}/files/{ann_file}/content")),
        ("GET", format!("/v1/vector_stores/{bob_store}/files/{ann_file}/content")),
        ("POST", format!("/v1/vector_stores/{ann_store}/files/{ann_file}")),
        ("DELETE", format!("/v1/vector_stores/{ann_store}/files/{ann_file}")),
        ("POST", format!("/v1/vector_stores/{ann_store}/search")),
    ] {
        let request = world.client().request(method, at.clone()).header("x-user-id", "bob");
        let request =
            if method == "POST" { request.json(&json!({"query": "treasure"})) } else { request };
        let answer = request.send().await?;
        assert_eq!(answer.status, 404, "{method} {at}: {}", answer.text());
    }
    // Bob cannot put ann's file into his store either.
    let at = format!("/v1/vector_stores/{bob_store}/files");
    let answer = world
        .client()
        .post(at)
        .header("x-user-id", "bob")
        .json(&json!({"file_id": ann_file}))
        .send()
        .await?;
    assert_eq!(answer.status, 404, "{}", answer.text());
    let listed =
        world.client().get("/v1/files").header("x-user-id", "bob").send().await?.expect(200)?;
    ensure!(!listed.text().contains(&ann_file), "{}", listed.text());

    // Ann says something else about her file, and still finds it.
    let at = format!("/v1/vector_stores/{ann_store}/files/{ann_file}");
    let changed = world
        .client()
        .post(at)
        .header("x-user-id", "ann")
        .json(&json!({"attributes": {"year": 1720}}))
        .send()
        .await?
        .expect(200)?
        .json();
    assert_eq!(changed["attributes"], json!({"year": 1720}), "{changed}");
    assert_eq!(changed["status"], "completed", "{changed}");
    for (year, found) in [(1720, true), (1721, false)] {
        let body = json!({
            "query": "treasure oak",
            "filters": {"type": "eq", "key": "year", "value": year},
        });
        let at = format!("/v1/vector_stores/{ann_store}/search");
        let answer = world.client().post(at).header("x-user-id", "ann").json(&body).send().await?;
        let answer = answer.expect(200)?.json();
        let hits = answer["data"].as_array().context("data")?.len();
        assert_eq!(hits > 0, found, "{year}: {answer}");
    }

    // What ann deletes is gone from the index, too.
    world
        .client()
        .delete(format!("/v1/files/{ann_file}"))
        .header("x-user-id", "ann")
        .send()
        .await?
        .expect(200)?;
    until("it is forgotten", SETTLED, async || {
        let found = search(
            &world,
            json!({"query": "treasure buried oak", "user_id": "ann", "similarity_threshold": 0.01}),
        )
        .await?;
        Ok(!found.to_string().contains("buried under"))
    })
    .await?;
    world.finish().await
}

/// Chats while everything is read again: nobody notices, and no thread is added.
#[tokio::test]
async fn chats_go_on_while_everything_is_indexed_again() -> Result<()> {
    const FILES: usize = 150;
    const CHATS: usize = 200;
    let docs = tempfile::tempdir()?;
    for at in 0..FILES {
        write(
            docs.path(),
            &format!("{at}.md"),
            format!("# Note {at}\n\nNumber {at} lives in house {at}.\n").repeat(3),
        )?;
    }
    let folder = docs.path().to_owned();
    let mut world = World::new(binary())
        .config(|config| {
            config.extra = source(&folder, "search = { similarity_threshold = 0.01 }") + AGENT
        })
        .start()
        .await?;
    settled(&world).await?;
    let threads = world.server()?.census()?.threads;
    world.client().post("/knowledge/docs/refresh?all=1").send().await?.expect(202)?;
    let client = world.client();
    let chats = (0..CHATS).map(|at| {
        let body = json!({"message": format!("where does number {} live?", at % FILES)});
        client.post("/knowledge-agent/chat").json(&body).limit(Duration::from_secs(60)).send()
    });
    let mut chats: tokio::task::JoinSet<_> = chats.collect();
    let mut most = 0;
    while let Some(answer) = chats.join_next().await {
        answer??.expect(200)?;
        most = most.max(world.server()?.census()?.threads);
    }
    assert_eq!(most, threads, "no thread is added");
    settled(&world).await?;
    world.finish().await
}

#[tokio::test]
async fn the_command_line_needs_no_server() -> Result<()> {
    let docs = tempfile::tempdir()?;
    write(docs.path(), "a.md", "# Bread\n\nThe oven must be at 230 degrees.\n")?;
    write(docs.path(), "b.md", "# Cake\n\nSee [bread](a.md) for the oven.\n")?;
    write(docs.path(), "bad.pdf", "no pdf")?;
    let folder = docs.path().display().to_string();
    let run = async |args: &[&str]| binary().run(docs.path(), args).await;
    let index = run(&["kb", "index", "--folder", &folder, "--json"]).await?.expect(0)?.json()?;
    assert_eq!(index["sources"][0]["documents"], 2, "{index}");
    assert_eq!(index["sources"][0]["failures"][0]["path"], "bad.pdf", "{index}");
    let strict = run(&["kb", "index", "--folder", &folder, "--strict"]).await?;
    strict.expect(1)?;
    let found = run(&["kb", "search", "how hot must the oven be", "--folder", &folder, "--json"])
        .await?
        .expect(0)?
        .json()?;
    assert_eq!(found["chunks"][0]["path"], "a.md", "{found}");
    let nothing = run(&["kb", "search", "zeppelin", "--folder", &folder]).await?.expect(3)?;
    ensure!(nothing.stdout.contains("1 file of `folder` could not be read"), "{}", nothing.stdout);
    // Whoever asks for what is not there is told so.
    write(docs.path(), "far/c.md", "# Island\n\nnothing alike\n")?;
    let way = run(&["kb", "graph", "Bread", "--to", "Island", "--folder", &folder]).await?;
    let way = way.expect(3)?;
    ensure!(way.stdout.contains("no way from Bread to Island"), "{}", way.stdout);
    let unknown = run(&["kb", "graph", "Qwertz", "--folder", &folder]).await?.expect(3)?;
    ensure!(unknown.stderr.contains("Qwertz"), "{}", unknown.stderr);
    write(docs.path(), "eval/corpus.jsonl", "")?;
    write(docs.path(), "eval/queries.jsonl", "{\"_id\": \"q\", \"text\": \"bread\"}\n")?;
    write(docs.path(), "eval/qrels/test.tsv", "q\td\t1\n")?;
    let eval = run(&["kb", "eval", "eval"]).await?.expect(1)?;
    ensure!(eval.stderr.contains("has no document"), "{}", eval.stderr);
    write(docs.path(), "eval/corpus.jsonl", "{\"_id\": \"e\", \"text\": \"bread\"}\n")?;
    let eval = run(&["kb", "eval", "eval"]).await?.expect(0)?;
    ensure!(eval.stderr.contains("1 relevant documents"), "{}", eval.stderr);
    let graph = run(&["kb", "graph", "--folder", &folder, "--json"]).await?.expect(0)?.json()?;
    ensure!(!graph["nodes"].as_array().context("nodes")?.is_empty(), "{graph}");
    Ok(())
}

const EMBED: &str = "
[models.embed]
provider = \"lab\"
model = \"e\"
dimensions = 1536

[models.order]
provider = \"lab\"
model = \"r\"
";

#[tokio::test]
async fn uploads_have_vectors_and_an_order_of_their_own() -> Result<()> {
    let world = World::new(binary())
        .config(|config| {
            config.extra =
                EMBED.to_owned() + "\n[uploads]\nembeddings = \"embed\"\nrerank = \"order\"\n";
        })
        .start()
        .await?;
    let (_, store) =
        upload(&world, "ann", "oak.md", "# Oak\n\nThe treasure lies under the old oak.\n").await?;
    // One alone needs no order.
    let text = "# Elm\n\nNo treasure lies under the elm, which is young.\n";
    let (_, other) = upload(&world, "ann", "elm.md", text).await?;
    until("both have their vectors", SETTLED, async || {
        let all = world.client().get("/knowledge").send().await?.expect(200)?.json();
        let sources = all["sources"].as_array().context("sources")?.clone();
        let uploads = sources.iter().find(|source| source["source"] == "uploads:");
        let uploads = uploads.with_context(|| format!("no uploads: {all}"))?;
        Ok(uploads["embeddings"]["embedded"] == 2 && uploads["settled"] == true)
    })
    .await?;
    let body = json!({"query": "treasure under the oak", "vector_store_ids": [store, other], "similarity_threshold": 0.01});
    let found = world.client().post("/knowledge/search").header("x-user-id", "ann").json(&body);
    let found = found.send().await?.expect(200)?.json();
    let scores = &found["chunks"][0]["scores"];
    assert!(scores["embedding"].as_f64() > Some(0.0), "{found}");
    assert!(scores["rerank"].as_f64() > Some(0.5), "{found}");
    world.finish().await
}

#[tokio::test]
async fn attributes_change_while_a_file_is_read() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let client = world.client();
    // Long enough that it is not read before it is changed.
    let text =
        "# Oak\n\n".to_owned() + &"The treasure lies under the old oak tree. ".repeat(20_000);
    let (kind, body) = form("oak.md", &text);
    let request = client.post("/v1/files").header("x-user-id", "ann").header("content-type", kind);
    let file = request.body(body).send().await?.expect(200)?.json();
    let file = file["id"].as_str().context("a file's id")?.to_owned();
    let request = client.post("/v1/vector_stores").header("x-user-id", "ann");
    let made = request.json(&json!({"name": "s", "file_ids": [file]})).send().await?.expect(200)?;
    let store = made.json()["id"].as_str().context("a store's id")?.to_owned();
    let at = format!("/v1/vector_stores/{store}/files/{file}");
    for year in 1..=20 {
        let request = client.post(&at).header("x-user-id", "ann");
        let answer = request.json(&json!({"attributes": {"year": year}})).send().await?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["attributes"], json!({"year": year}));
    }
    until("it is read", SETTLED, async || {
        let answer = client.get(&at).header("x-user-id", "ann").send().await?.expect(200)?.json();
        Ok(answer["status"] == "completed")
    })
    .await?;
    let answer = client.get(&at).header("x-user-id", "ann").send().await?.expect(200)?.json();
    assert_eq!(answer["attributes"], json!({"year": 20}), "{answer}");
    world.finish().await
}

#[tokio::test]
async fn a_model_reads_relations_out_of_each_text_once() -> Result<()> {
    let docs = tempfile::tempdir()?;
    for n in 0..5 {
        write(
            docs.path(),
            &format!("{n}.md"),
            format!("# Note {n}\n\nAnna Berg met Otto Brandt in room {n}.\n"),
        )?;
    }
    let folder = docs.path().to_owned();
    let mut world = World::new(binary())
        .config(|config| {
            config.extra = source(&folder, "graph = \"llm\"\ngraph_model = \"cofounder\"")
        })
        .start()
        .await?;
    let report = settled(&world).await?;
    assert_eq!(
        (&report["triples"]["texts"], &report["triples"]["waiting"]),
        (&json!(5), &json!(0))
    );
    // The simulator answers by schema: the same for each text.
    let at = "/knowledge/docs/graph?entity=Example%20subject";
    let graph = world.client().get(at).send().await?.expect(200)?.json();
    let edges = graph["edges"].as_array().context("edges")?;
    let relation = edges.iter().find(|edge| edge["kind"] == "relation");
    let relation = relation.with_context(|| format!("no relation: {graph}"))?;
    assert_eq!(
        (&relation["from"], &relation["label"], &relation["to"]),
        (&json!("name:Example subject"), &json!("Example relation"), &json!("name:Example object"))
    );
    let picture = world.client().get(format!("{at}&format=svg")).send().await?.expect(200)?;
    assert!(picture.text().contains("Example relation"), "the picture says what connects them");
    // A text that stays is not asked about again, neither after a change of another nor after a restart.
    write(docs.path(), "0.md", "# Note 0\n\nAnna Berg has left the company.\n")?;
    until("the change is asked about", SETTLED, async || {
        Ok(status(&world).await?["triples"]["texts"] == 6)
    })
    .await?;
    world.kill().await?;
    world.restart().await?;
    let report = settled(&world).await?;
    assert_eq!(report["triples"]["texts"], 0, "{report}");
    assert_eq!(world.sim().count("requests").await?, 6);
    let graph = world.client().get(at).send().await?.expect(200)?.json();
    assert!(graph.to_string().contains("Example relation"), "kept: {graph}");
    world.finish().await
}
