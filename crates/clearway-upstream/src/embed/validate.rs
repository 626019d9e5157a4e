//! Whether a vector can be used.
//!
//! A vector that is all zeros or has a NaN in it does not fail where it is stored: it makes every
//! later search wrong. So each one is looked at when it arrives, and the error says what is wrong.

use std::fmt;

/// Why a vector cannot be used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Defect {
    Empty,
    Dimensions { expected: usize, got: usize },
    NotFinite { at: usize, value: f32 },
    Zeros,
    MostlyZeros { zeros: usize, of: usize },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Dimensions { expected, got } => {
                write!(f, "it has {got} dimensions instead of {expected}")
            }
            Self::NotFinite { at, value } => write!(f, "its value at {at} is {value}"),
            Self::Zeros => f.write_str("it is all zeros"),
            Self::MostlyZeros { zeros, of } => write!(f, "{zeros} of its {of} values are zero"),
        }
    }
}

/// Looks at a vector; tells the largest magnitude in it.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub(super) fn check(vector: &[f32], expected: Option<usize>) -> Result<f32, Defect> {
    let got = vector.len();
    if got == 0 {
        return Err(Defect::Empty);
    }
    if let Some(expected) = expected.filter(|expected| *expected != got) {
        return Err(Defect::Dimensions { expected, got });
    }
    if let Some(at) = vector.iter().position(|value| !value.is_finite()) {
        return Err(Defect::NotFinite { at, value: vector[at] });
    }
    let zeros = vector.iter().filter(|value| **value == 0.0).count();
    if zeros == got {
        return Err(Defect::Zeros);
    }
    // More than 95 %, without rounding.
    if zeros * 100 > got * 95 {
        return Err(Defect::MostlyZeros { zeros, of: got });
    }
    Ok(vector.iter().fold(0.0, |most: f32, value| most.max(value.abs())))
}

/// Values beyond this are unusual for an embedding, but not wrong.
pub(super) const UNUSUAL: f32 = 10.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_defect_is_named() {
        let check =
            |vector: &[f32], expected| check(vector, expected).map_err(|defect| defect.to_string());
        assert_eq!(check(&[0.5, -11.0], Some(2)), Ok(11.0));
        assert_eq!(check(&[0.5, 0.0], None), Ok(0.5));
        for (vector, expected, text) in [
            (&[] as &[f32], None, "it is empty"),
            (&[1.0, 2.0], Some(3), "it has 2 dimensions instead of 3"),
            (&[1.0, f32::NAN], None, "its value at 1 is NaN"),
            (&[f32::NEG_INFINITY, 1.0], None, "its value at 0 is -inf"),
            (&[0.0, -0.0], None, "it is all zeros"),
        ] {
            assert_eq!(check(vector, expected), Err(text.to_owned()));
        }
    }

    #[test]
    fn ninety_five_percent_of_zeros_is_the_limit() {
        let with_zeros = |zeros: usize| {
            let mut vector = vec![1.0; 100];
            vector[..zeros].fill(0.0);
            check(&vector, Some(100))
        };
        assert_eq!(with_zeros(95), Ok(1.0));
        assert_eq!(with_zeros(96), Err(Defect::MostlyZeros { zeros: 96, of: 100 }));
    }
}
