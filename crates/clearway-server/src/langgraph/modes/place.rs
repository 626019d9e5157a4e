//! The place of an item among those of its event: the same whatever a client asks for. They are in the
//! order in which items appear.

pub(super) const STARTED: u8 = 0;
pub(super) const TOKEN: u8 = 0;
/// Where the input has arrived, and where it is applied.
pub(super) const ARRIVED: u8 = 1;
pub(super) const APPLIED: u8 = 2;
/// Messages in one piece, up to [`SAID_LAST`].
pub(super) const SAID: u8 = 3;
pub(super) const SAID_LAST: u8 = 11;
/// What a run begins with.
pub(super) const VALUES: u8 = 14;
pub(super) const CHECKPOINT: u8 = 15;
pub(super) const INTERRUPTS: u8 = 16;
/// Values with open questions.
pub(super) const ASKED: u8 = 17;
pub(super) const TASK: u8 = 17;
/// Ends of calls that ask or have failed, up to [`UNDONE_LAST`].
pub(super) const UNDONE: u8 = 18;
pub(super) const UNDONE_LAST: u8 = 28;
pub(super) const SPEECH: u8 = 18;
/// Messages taken back, up to [`UNSAID_LAST`].
pub(super) const UNSAID: u8 = 19;
pub(super) const UNSAID_LAST: u8 = 28;
pub(super) const FAILED: u8 = 29;
pub(super) const ENDED: u8 = 30;

// A superstep is shown under the event that told of its last call's end: what its calls returned, its
// values, its checkpoint.

/// What a call returned, by its number in the superstep; its end has the place behind. Of more calls than
/// there is room for all others share the last two, and are written at once.
pub(super) const fn update(call: usize) -> u8 {
    if call < 14 { 12 + 2 * call as u8 } else { 38 }
}

pub(super) const STEP_VALUES: u8 = 40;
pub(super) const STEP_CHECKPOINT: u8 = 41;
