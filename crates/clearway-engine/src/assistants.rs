//! Assistants: agents under other names and with settings of their own, in versions.
//!
//! Every agent has one that the server makes. Its id is derived from the agent's name, so that it
//! is the same after a restart; it is stored only once somebody changes it.
//!
//! Not here: what a run does with its assistant's settings (whoever submits it).

use clearway_core::{Code, Timestamp};
use clearway_store::{Assistant, AssistantPut, LatestAssistant, NewAssistant, VERSIONS};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::Error;
use crate::engine::{Engine, bounded};

/// Namespace of the ids that are derived from agents' names: LangGraph's, so that ids that its
/// clients keep stay right.
const NAMESPACE: Uuid = Uuid::from_u128(0x6ba7_b821_9dad_11d1_80b4_00c0_4fd4_30c8);

/// Who made an assistant that nobody made.
const SYSTEM: &str = "system";

/// How often a change begins anew because somebody else was faster.
const TRIES: usize = 8;

/// What a version of an assistant is to be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AssistantSettings {
    pub agent: String,
    pub name: Option<String>,
    pub description: Option<String>,
    pub config: Map<String, Value>,
    pub context: Map<String, Value>,
    pub metadata: Map<String, Value>,
}

/// What of an assistant is to be different; metadata is added to what is there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AssistantChange {
    pub agent: Option<String>,
    pub name: Option<String>,
    pub description: Option<String>,
    pub config: Option<Map<String, Value>>,
    pub context: Option<Map<String, Value>>,
    pub metadata: Map<String, Value>,
}

impl Engine {
    /// The id of the assistant that the server makes for an agent.
    pub fn assistant_id(agent: &str) -> Uuid {
        Uuid::new_v5(&NAMESPACE, agent.as_bytes())
    }

    /// The assistant with an id, at the version that runs take.
    ///
    /// # Errors
    /// `agent_not_found`, `store_unavailable`.
    pub async fn assistant(&self, tenant: &str, id: Uuid) -> Result<Assistant, Error> {
        Ok(self.latest_assistant(tenant, id).await?.latest)
    }

    /// The assistant that is meant by an agent's name or an assistant's id.
    ///
    /// # Errors
    /// `agent_not_found`, `store_unavailable`.
    pub async fn assistant_called(&self, tenant: &str, name: &str) -> Result<Assistant, Error> {
        if self.agents().get(name).is_some() {
            return self.assistant(tenant, Self::assistant_id(name)).await;
        }
        match Uuid::try_parse(name) {
            Ok(id) => self.assistant(tenant, id).await,
            Err(_) => Err(self.no_agent(name)),
        }
    }

    /// All assistants of a tenant, those of the server included, by id.
    ///
    /// # Errors
    /// `store_unavailable`.
    pub async fn assistants(&self, tenant: &str) -> Result<Vec<Assistant>, Error> {
        let mut found: Vec<Assistant> = Vec::new();
        loop {
            let after = found.last().map(|last| last.id);
            let page = bounded(self.inner().store.assistants(tenant, after, PAGE)).await?;
            let last = page.len() < PAGE as usize;
            found.extend(page);
            if last {
                break;
            }
        }
        let stored: Vec<Uuid> = found.iter().map(|assistant| assistant.id).collect();
        for agent in self.agents().all().keys() {
            let made = self.made_for(tenant, agent);
            if !stored.contains(&made.id) {
                found.push(made);
            }
        }
        found.sort_by_key(|assistant| assistant.id);
        Ok(found)
    }

    /// Makes an assistant. `Err` inside is the one that has the id already.
    ///
    /// # Errors
    /// `agent_not_found`, `limit_exceeded`, `store_unavailable`.
    pub async fn create_assistant(
        &self,
        tenant: &str,
        owner: Option<&str>,
        id: Option<Uuid>,
        settings: AssistantSettings,
    ) -> Result<Result<Assistant, Assistant>, Error> {
        if self.agents().get(&settings.agent).is_none() {
            return Err(self.no_agent(&settings.agent));
        }
        if let Some(id) = id
            && let Some(made) = self.made(tenant, id)
        {
            return Ok(Err(self.assistant(tenant, made.id).await?));
        }
        let now = self.now();
        let assistant = Assistant {
            id: id.unwrap_or_else(|| self.new_id()),
            tenant: tenant.to_owned(),
            owner: owner.map(ToOwned::to_owned),
            agent: settings.agent,
            version: 1,
            name: settings.name.unwrap_or_else(|| "Untitled".to_owned()),
            description: settings.description,
            config: settings.config,
            context: settings.context,
            metadata: settings.metadata,
            created_at: now,
            updated_at: now,
        };
        match self.put_version(assistant.clone(), None).await? {
            AssistantPut::Stored => Ok(Ok(assistant)),
            AssistantPut::Exists(known) => Ok(Err(known.latest)),
            AssistantPut::Gone => Err(no_assistant(assistant.id)),
            AssistantPut::TooMany => Err(too_many("there are as many assistants as there may be")),
        }
    }

    /// Makes a new version of an assistant, which runs take from now on.
    ///
    /// # Errors
    /// `agent_not_found`, `limit_exceeded`, `store_unavailable`.
    pub async fn change_assistant(
        &self,
        tenant: &str,
        id: Uuid,
        change: AssistantChange,
    ) -> Result<Assistant, Error> {
        if let Some(agent) = &change.agent
            && self.agents().get(agent).is_none()
        {
            return Err(self.no_agent(agent));
        }
        let mut known = self.stored(tenant, id).await?;
        for _ in 0..TRIES {
            let next = changed(&known, &change, self.now());
            match self.put_version(next.clone(), Some(known.newest)).await? {
                AssistantPut::Stored => return Ok(next),
                AssistantPut::Exists(now) => known = *now,
                AssistantPut::Gone => return Err(no_assistant(id)),
                AssistantPut::TooMany => {
                    let text = format!("an assistant has at most {VERSIONS} versions");
                    return Err(too_many(&text));
                }
            }
        }
        let text = format!("assistant {id} is being changed by others all the time");
        Err(Error(clearway_core::Failure::new(Code::CheckpointConflict, text).retryable()))
    }

    /// All versions of an assistant, newest first.
    ///
    /// # Errors
    /// `agent_not_found`, `store_unavailable`.
    pub async fn assistant_versions(
        &self,
        tenant: &str,
        id: Uuid,
    ) -> Result<Vec<Assistant>, Error> {
        let found = bounded(self.inner().store.assistant_versions(tenant, id)).await?;
        match (found.is_empty(), self.made(tenant, id)) {
            (false, _) => Ok(found),
            (true, Some(made)) => Ok(vec![made]),
            (true, None) => Err(no_assistant(id)),
        }
    }

    /// Makes an earlier version, all of it, the one that runs take.
    ///
    /// # Errors
    /// `agent_not_found`, `store_unavailable`.
    pub async fn select_assistant(
        &self,
        tenant: &str,
        id: Uuid,
        version: u32,
    ) -> Result<Assistant, Error> {
        if let Some(chosen) =
            bounded(self.inner().store.select_assistant(tenant, id, version)).await?
        {
            return Ok(chosen);
        }
        let known = self.assistant(tenant, id).await?;
        if known.version == version {
            return Ok(known);
        }
        let text = format!("assistant {id} has no version {version}");
        Err(Error::new(Code::AgentNotFound, text))
    }

    /// Deletes an assistant with all its versions; its runs stay. The server's own one of an agent
    /// becomes again what it was at first.
    ///
    /// # Errors
    /// `agent_not_found`, `store_unavailable`.
    pub async fn delete_assistant(&self, tenant: &str, id: Uuid) -> Result<(), Error> {
        let deleted = bounded(self.inner().store.delete_assistant(tenant, id)).await?;
        if deleted || self.made(tenant, id).is_some() { Ok(()) } else { Err(no_assistant(id)) }
    }

    async fn put_version(
        &self,
        assistant: Assistant,
        after: Option<u32>,
    ) -> Result<AssistantPut, Error> {
        let new = NewAssistant { assistant, after };
        let first = bounded(self.inner().store.put_assistant(new.clone())).await;
        match first {
            // It may have happened: the store recognises the repetition.
            Err(error) if !error.certainly_aborted => {
                Ok(bounded(self.inner().store.put_assistant(new)).await?)
            }
            other => Ok(other?),
        }
    }

    async fn latest_assistant(&self, tenant: &str, id: Uuid) -> Result<LatestAssistant, Error> {
        if let Some(found) = bounded(self.inner().store.assistant(tenant, id)).await? {
            return Ok(found);
        }
        let made = self.made(tenant, id).ok_or_else(|| no_assistant(id))?;
        Ok(LatestAssistant { latest: made, newest: 1 })
    }

    /// As [`Engine::latest_assistant`], and stored from now on.
    async fn stored(&self, tenant: &str, id: Uuid) -> Result<LatestAssistant, Error> {
        let known = self.latest_assistant(tenant, id).await?;
        if self.made(tenant, id).is_some_and(|made| made == known.latest) {
            self.put_version(known.latest.clone(), None).await?;
        }
        Ok(known)
    }

    /// The assistant that the server makes, if its id is one of those.
    fn made(&self, tenant: &str, id: Uuid) -> Option<Assistant> {
        let agents = self.agents().all();
        let agent = agents.keys().find(|agent| Self::assistant_id(agent) == id)?;
        Some(self.made_for(tenant, agent))
    }

    fn made_for(&self, tenant: &str, agent: &str) -> Assistant {
        let since = self.inner().started_at;
        Assistant {
            id: Self::assistant_id(agent),
            tenant: tenant.to_owned(),
            owner: None,
            agent: agent.to_owned(),
            version: 1,
            name: agent.to_owned(),
            description: None,
            config: Map::new(),
            context: Map::new(),
            metadata: Map::from_iter([("created_by".to_owned(), SYSTEM.into())]),
            created_at: since,
            updated_at: since,
        }
    }

    fn no_agent(&self, name: &str) -> Error {
        let known = self.agents().all().keys().cloned().collect::<Vec<_>>().join(", ");
        let name: String = name.chars().take(100).collect();
        Error::new(Code::AgentNotFound, format!("no agent `{name}`; there are: {known}"))
    }
}

fn changed(known: &LatestAssistant, change: &AssistantChange, now: Timestamp) -> Assistant {
    let AssistantChange { agent, name, description, config, context, metadata } = change.clone();
    let mut next = known.latest.clone();
    next.version = known.newest + 1;
    next.updated_at = now;
    next.agent = agent.unwrap_or(next.agent);
    next.name = name.unwrap_or(next.name);
    next.description = description.or(next.description);
    next.config = config.unwrap_or(next.config);
    next.context = context.unwrap_or(next.context);
    next.metadata.extend(metadata);
    next
}

fn no_assistant(id: Uuid) -> Error {
    Error::new(Code::AgentNotFound, format!("no assistant {id}"))
}

fn too_many(text: &str) -> Error {
    Error::new(Code::LimitExceeded, text)
}

const PAGE: u32 = 1000;
