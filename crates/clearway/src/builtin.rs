//! The examples in the binary: what `clearway dev` serves in a folder without a `clearway.toml`, and
//! what `clearway init` writes.
//!
//! They are real files, so that they can be read, copied and checked like anybody's.

/// Writes the example project into a folder. Files that are there already stay as they are.
///
/// # Errors
/// Those of the file system.
pub fn write(folder: &std::path::Path) -> std::io::Result<Vec<(String, bool)>> {
    let mut written = Vec::new();
    let config = [("clearway.toml", CONFIG)];
    for (name, text) in config.iter().chain(FILES) {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let new = !path.exists();
        if new {
            std::fs::write(&path, text)?;
        }
        written.push(((*name).to_owned(), new));
    }
    Ok(written)
}

/// The configuration.
pub(crate) const CONFIG: &str = include_str!("builtin/clearway.toml");

/// The files it names.
pub(crate) const FILES: &[(&str, &str)] = &[
    (
        "prompts/campaign/audience_persona.md",
        include_str!("builtin/prompts/campaign/audience_persona.md"),
    ),
    (
        "prompts/campaign/campaign_summary.md",
        include_str!("builtin/prompts/campaign/campaign_summary.md"),
    ),
    (
        "prompts/campaign/client_summary.md",
        include_str!("builtin/prompts/campaign/client_summary.md"),
    ),
    ("prompts/campaign/copy.md", include_str!("builtin/prompts/campaign/copy.md")),
    ("prompts/campaign/creative.md", include_str!("builtin/prompts/campaign/creative.md")),
    (
        "prompts/campaign/cta_optimizer.md",
        include_str!("builtin/prompts/campaign/cta_optimizer.md"),
    ),
    ("prompts/campaign/designer.md", include_str!("builtin/prompts/campaign/designer.md")),
    (
        "prompts/campaign/emotion_personalization.md",
        include_str!("builtin/prompts/campaign/emotion_personalization.md"),
    ),
    (
        "prompts/campaign/html_validation.md",
        include_str!("builtin/prompts/campaign/html_validation.md"),
    ),
    (
        "prompts/campaign/media_planner.md",
        include_str!("builtin/prompts/campaign/media_planner.md"),
    ),
    (
        "prompts/campaign/project_manager.md",
        include_str!("builtin/prompts/campaign/project_manager.md"),
    ),
    ("prompts/campaign/review.md", include_str!("builtin/prompts/campaign/review.md")),
    (
        "prompts/campaign/social_media_campaign.md",
        include_str!("builtin/prompts/campaign/social_media_campaign.md"),
    ),
    ("prompts/campaign/strategy.md", include_str!("builtin/prompts/campaign/strategy.md")),
    ("prompts/campaign/visual.md", include_str!("builtin/prompts/campaign/visual.md")),
    ("prompts/cofounder.md", include_str!("builtin/prompts/cofounder.md")),
    ("prompts/plan/finance.md", include_str!("builtin/prompts/plan/finance.md")),
    ("prompts/plan/go_to_market.md", include_str!("builtin/prompts/plan/go_to_market.md")),
    ("prompts/plan/market.md", include_str!("builtin/prompts/plan/market.md")),
    ("prompts/plan/model.md", include_str!("builtin/prompts/plan/model.md")),
    ("prompts/plan/risks.md", include_str!("builtin/prompts/plan/risks.md")),
    ("prompts/plan/summary.md", include_str!("builtin/prompts/plan/summary.md")),
    (
        "schemas/campaign/audience_persona.json",
        include_str!("builtin/schemas/campaign/audience_persona.json"),
    ),
    (
        "schemas/campaign/campaign_summary.json",
        include_str!("builtin/schemas/campaign/campaign_summary.json"),
    ),
    (
        "schemas/campaign/client_summary.json",
        include_str!("builtin/schemas/campaign/client_summary.json"),
    ),
    ("schemas/campaign/copy.json", include_str!("builtin/schemas/campaign/copy.json")),
    ("schemas/campaign/creative.json", include_str!("builtin/schemas/campaign/creative.json")),
    (
        "schemas/campaign/cta_optimizer.json",
        include_str!("builtin/schemas/campaign/cta_optimizer.json"),
    ),
    ("schemas/campaign/designer.json", include_str!("builtin/schemas/campaign/designer.json")),
    (
        "schemas/campaign/emotion_personalization.json",
        include_str!("builtin/schemas/campaign/emotion_personalization.json"),
    ),
    (
        "schemas/campaign/html_validation.json",
        include_str!("builtin/schemas/campaign/html_validation.json"),
    ),
    (
        "schemas/campaign/media_planner.json",
        include_str!("builtin/schemas/campaign/media_planner.json"),
    ),
    (
        "schemas/campaign/project_manager.json",
        include_str!("builtin/schemas/campaign/project_manager.json"),
    ),
    ("schemas/campaign/review.json", include_str!("builtin/schemas/campaign/review.json")),
    (
        "schemas/campaign/social_media_campaign.json",
        include_str!("builtin/schemas/campaign/social_media_campaign.json"),
    ),
    ("schemas/campaign/strategy.json", include_str!("builtin/schemas/campaign/strategy.json")),
    ("schemas/campaign/visual.json", include_str!("builtin/schemas/campaign/visual.json")),
    (
        "schemas/cofounder/milestones.json",
        include_str!("builtin/schemas/cofounder/milestones.json"),
    ),
    ("schemas/cofounder/todos.json", include_str!("builtin/schemas/cofounder/todos.json")),
    ("schemas/plan/finance.json", include_str!("builtin/schemas/plan/finance.json")),
    ("schemas/plan/go_to_market.json", include_str!("builtin/schemas/plan/go_to_market.json")),
    ("schemas/plan/market.json", include_str!("builtin/schemas/plan/market.json")),
    ("schemas/plan/model.json", include_str!("builtin/schemas/plan/model.json")),
    ("schemas/plan/risks.json", include_str!("builtin/schemas/plan/risks.json")),
    ("schemas/plan/summary.json", include_str!("builtin/schemas/plan/summary.json")),
    ("templates/campaign/letter.md", include_str!("builtin/templates/campaign/letter.md")),
    (
        "templates/campaign/media_plan.csv",
        include_str!("builtin/templates/campaign/media_plan.csv"),
    ),
    ("templates/campaign/report.md", include_str!("builtin/templates/campaign/report.md")),
    ("templates/campaign/website.html", include_str!("builtin/templates/campaign/website.html")),
    ("templates/plan/plan.md", include_str!("builtin/templates/plan/plan.md")),
];

/// The sample notes of the knowledge agent, by path.
pub(crate) const NOTES: &[(&str, &str)] = &[
    ("company/about.md", include_str!("builtin/notes/company/about.md")),
    ("company/values.md", include_str!("builtin/notes/company/values.md")),
    (
        "operations/incident-2025-11.md",
        include_str!("builtin/notes/operations/incident-2025-11.md"),
    ),
    ("operations/support.md", include_str!("builtin/notes/operations/support.md")),
    ("operations/travel.md", include_str!("builtin/notes/operations/travel.md")),
    ("people/idris-bakker.md", include_str!("builtin/notes/people/idris-bakker.md")),
    ("people/maren-osei.md", include_str!("builtin/notes/people/maren-osei.md")),
    ("people/sofia-lindqvist.md", include_str!("builtin/notes/people/sofia-lindqvist.md")),
    ("product/installation.md", include_str!("builtin/notes/product/installation.md")),
    ("product/plans.md", include_str!("builtin/notes/product/plans.md")),
    ("product/probe.md", include_str!("builtin/notes/product/probe.md")),
    ("product/roadmap.md", include_str!("builtin/notes/product/roadmap.md")),
];
