//! Parts of steps that are sent outside.

use crate::config::walk::Value;
use crate::workflow::shape::Shape;

/// JSON with templates in it.
pub(super) fn shape(value: &Value<'_>, name: &str) -> Option<Shape> {
    let json = value.json()?;
    match Shape::compile(name, &json) {
        Ok(shape) => Some(shape),
        Err(why) => {
            value.problem(format!("a template in this is broken: {why}"), "here", "");
            None
        }
    }
}
