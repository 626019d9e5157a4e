//! Vectors of chunks in one flat array of bytes, compared one by one.
//!
//! An exact scan needs no tuning, loses nothing and takes any scope; the loops are plain, so that the compiler turns
//! them into vector instructions. Each vector is scaled to length one and then to the range of a byte of its own.

use crate::{GoOn, Stopped};

/// One vector for each chunk; all zero where there is none.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    dimensions: usize,
    bytes: Vec<i8>,
    /// What a byte of each vector is worth; 0 where there is none.
    scales: Vec<f32>,
}

/// A vector as it is compared.
#[derive(Clone, Debug)]
pub(crate) struct Quantized {
    bytes: Vec<i8>,
    scale: f32,
}

impl Quantized {
    /// `None` for a vector without direction.
    #[expect(clippy::cast_possible_truncation, reason = "rounded and within a byte's range")]
    pub(crate) fn new(values: &[f32]) -> Option<Self> {
        let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let largest = values.iter().fold(0_f32, |most, v| most.max(v.abs()));
        if !length.is_finite() || length <= f32::MIN_POSITIVE || largest <= f32::MIN_POSITIVE {
            return None;
        }
        let bytes = values.iter().map(|v| (v / largest * 127.0).round() as i8).collect();
        Some(Self { bytes, scale: largest / 127.0 / length })
    }
}

impl Quantized {
    pub(crate) fn dimensions(&self) -> usize {
        self.bytes.len()
    }
}

impl Vectors {
    pub(crate) fn new(dimensions: usize) -> Self {
        Self { dimensions, ..Self::default() }
    }

    /// Adds the next chunk's vector; one of another length counts as none.
    pub(crate) fn push(&mut self, vector: Option<&Quantized>) {
        match vector.filter(|vector| vector.bytes.len() == self.dimensions) {
            Some(vector) => {
                self.bytes.extend_from_slice(&vector.bytes);
                self.scales.push(vector.scale);
            }
            None => {
                self.bytes.resize(self.bytes.len() + self.dimensions, 0);
                self.scales.push(0.0);
            }
        }
    }

    /// The cosine of each chunk in scope; 0 elsewhere and where there is no vector.
    #[expect(clippy::cast_precision_loss, reason = "a sum of products of bytes")]
    pub(crate) fn cosines(
        &self,
        query: &Quantized,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Vec<f32>, Stopped> {
        let mut cosines = vec![0_f32; self.scales.len()];
        if query.bytes.len() != self.dimensions || self.dimensions == 0 {
            return Ok(cosines);
        }
        let rows = self.bytes.chunks_exact(self.dimensions).zip(&self.scales).zip(allowed);
        for (at, (((row, scale), allowed), cosine)) in rows.zip(&mut cosines).enumerate() {
            if at % 4096 == 0 && !go_on() {
                return Err(Stopped);
            }
            if *allowed && *scale > 0.0 {
                *cosine = dot(row, &query.bytes) as f32 * scale * query.scale;
            }
        }
        Ok(cosines)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len() + 4 * self.scales.len()
    }
}

fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(i16::from(*a) * i16::from(*b))).sum()
}
