//! A model with tools inside one node call: for steps of workflows.

use std::sync::Arc;

use clearway_core::message::Message;
use clearway_core::{Code, Failure};
use clearway_upstream::ChatRequest;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use super::call::{self, Answered, Asked};
use super::{CALLS, CALLS_AT_ONCE, Toolbox};
use crate::agent::NodeError;
use crate::chat::complete;
use crate::ctx::Ctx;

/// Asks a model, makes the calls it wants, and asks again, until it answers.
///
/// What the model said and what tools answered is kept, so a call that is made again after a crash or
/// a wait goes on from there. `request` grows by the conversation; the answer is not part of it.
///
/// # Errors
/// Those of the provider; `limit_exceeded` naming `tool_rounds`; whatever stops a tool.
pub async fn converse(
    cx: &Ctx,
    toolbox: &Toolbox,
    request: &mut ChatRequest,
) -> Result<Message, NodeError> {
    if !toolbox.confirm.is_empty() {
        let text = "a step cannot ask for approval of a tool call; an agent can";
        return Err(Failure::new(Code::InvalidConfig, text).into());
    }
    for round in 0..=toolbox.rounds {
        let offer = toolbox.offer(cx).await?;
        let last = round == toolbox.rounds;
        let mut asking = request.clone();
        if let Some(tools) = offer.param() {
            asking.params.insert("tools".to_owned(), tools);
            if last {
                asking.params.insert("tool_choice".to_owned(), "none".into());
            }
        }
        // Each message of a call has a number; answers of tools have their own.
        let index = round * (CALLS as u32 + 1);
        let name = if round == 0 { String::new() } else { format!("-{round}") };
        let asking = async { Ok(Box::pin(complete(cx, &name, index, asking)).await?.to_value()) };
        let kept = cx.step(&format!("model-{round}"), asking).await?;
        let asked = Asked::of(&kept);
        if asked.is_empty() {
            return Message::from_value(&kept)
                .ok_or_else(|| Failure::new(Code::Internal, "a kept message is damaged").into());
        }
        if last {
            break;
        }
        request.messages.push(Arc::new(kept));
        let mut calls: Vec<BoxFuture<'_, Result<Value, NodeError>>> = Vec::new();
        for (at, asked) in asked.iter().enumerate() {
            let id = cx.message_id(index + 1 + at.min(CALLS) as u32).to_string();
            calls.push(Box::pin(one(cx, &offer, asked, round, at, id)));
        }
        let answers: Vec<Result<Value, NodeError>> =
            stream::iter(calls).buffered(CALLS_AT_ONCE as usize).collect().await;
        for answer in answers {
            request.messages.push(Arc::new(answer?));
        }
    }
    let text = format!(
        "the model goes on calling tools after {0} rounds; `tool_rounds` allows no more",
        toolbox.rounds
    );
    Err(Failure::new(Code::LimitExceeded, text).with("limit", "tool_rounds").into())
}

async fn one(
    cx: &Ctx,
    offer: &super::Offer,
    asked: &Asked,
    round: u32,
    at: usize,
    id: String,
) -> Result<Value, NodeError> {
    if at >= CALLS {
        let text = format!("one message may have {CALLS} calls; `tool_calls` allows no more");
        let failure = Failure::new(Code::LimitExceeded, text);
        return Ok(call::told(asked, id, &failure).message.to_value());
    }
    let name = format!("tool-{round}-{at}");
    let kept = format!("answer-{round}-{at}");
    let made = async {
        let Answered { message, .. } = call::make(cx, offer, asked, &name, id).await?;
        Ok(message.to_value())
    };
    cx.step(&kept, made).await
}
