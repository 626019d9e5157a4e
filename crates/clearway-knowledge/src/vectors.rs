//! Vectors of chunks in one flat array of bytes, compared one by one.
//!
//! An exact scan needs no tuning, loses nothing and takes any scope; the loops are plain, so that the compiler turns
//! them into vector instructions. Each vector is scaled to length one and then to the range of a byte of its own.
//!
//! Many long vectors are too many bytes to look at for each question. Then a [`Sketch`] of one bit for each number says
//! which are worth looking at, and only these are compared.

use crate::{GoOn, Stopped};

/// One vector for each chunk; all zero where there is none.
#[derive(Debug, Default)]
pub(crate) struct Vectors {
    dimensions: usize,
    bytes: Vec<i8>,
    /// What a byte of each vector is worth; 0 where there is none.
    scales: Vec<f32>,
    sketch: Option<Sketch>,
}

/// On which side of the middle of all vectors each number of each vector lies.
#[derive(Debug)]
struct Sketch {
    middle: Vec<f32>,
    /// Of each vector.
    words: usize,
    bits: Vec<u64>,
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

/// Fewer bytes than this are looked at in no time.
const SKETCHED_BYTES: usize = 8 << 20;
/// Short sketches say too little.
const SKETCHED_DIMENSIONS: usize = 256;
/// How many are compared after a look at their sketches: of all, and at least.
const COMPARED_SHARE: usize = 25;
const COMPARED: usize = 4_096;
/// So many say where the middle is.
const MIDDLE_OF: usize = 8_192;

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

    /// Makes a sketch if there are so many that it pays.
    pub(crate) fn sketched(mut self) -> Self {
        if self.bytes.len() >= SKETCHED_BYTES && self.dimensions >= SKETCHED_DIMENSIONS {
            self.sketch = Some(self.sketch_of_all());
        }
        self
    }

    fn sketch_of_all(&self) -> Sketch {
        let middle = self.middle();
        let words = self.dimensions.div_ceil(64);
        let mut bits = Vec::with_capacity(words * self.scales.len());
        for (row, scale) in self.rows() {
            bits.extend(sides(row, *scale, &middle));
        }
        Sketch { middle, words, bits }
    }

    /// The mean of some that lie evenly among all.
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    fn middle(&self) -> Vec<f32> {
        let mut middle = vec![0_f32; self.dimensions];
        let mut counted = 0_usize;
        for (row, scale) in self.rows().step_by((self.scales.len() / MIDDLE_OF).max(1)) {
            if *scale > 0.0 {
                counted += 1;
                middle.iter_mut().zip(row).for_each(|(sum, byte)| *sum += f32::from(*byte) * scale);
            }
        }
        middle.iter_mut().for_each(|sum| *sum /= counted.max(1) as f32);
        middle
    }

    fn rows(&self) -> impl Iterator<Item = (&[i8], &f32)> {
        self.bytes.chunks_exact(self.dimensions.max(1)).zip(&self.scales)
    }

    /// The cosine of each chunk in scope; 0 elsewhere and where there is no vector.
    pub(crate) fn cosines(
        &self,
        query: &Quantized,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Vec<f32>, Stopped> {
        let mut cosines = vec![0_f32; self.scales.len()];
        if !self.compares(query) {
            return Ok(cosines);
        }
        for (at, (((row, scale), allowed), cosine)) in
            self.rows().zip(allowed).zip(&mut cosines).enumerate()
        {
            if at % 4096 == 0 && !go_on() {
                return Err(Stopped);
            }
            if *allowed && *scale > 0.0 {
                *cosine = query.cosine(row, *scale);
            }
        }
        Ok(cosines)
    }

    /// The cosine of each chunk in scope that is among the nearest, of all if they are few; 0 elsewhere.
    pub(crate) fn nearest(
        &self,
        query: &Quantized,
        allowed: &[bool],
        go_on: GoOn<'_>,
    ) -> Result<Vec<f32>, Stopped> {
        let in_scope = allowed.iter().filter(|allowed| **allowed).count();
        let wanted = (in_scope / COMPARED_SHARE).max(COMPARED);
        let Some(sketch) = self.sketch.as_ref().filter(|_| in_scope > 2 * wanted) else {
            return self.cosines(query, allowed, go_on);
        };
        let mut cosines = vec![0_f32; self.scales.len()];
        if !self.compares(query) {
            return Ok(cosines);
        }
        let (distances, furthest) = sketch.distances(query, allowed, wanted, go_on)?;
        let near = distances.iter().enumerate().filter(|(_, distance)| **distance <= furthest);
        for (count, (at, _)) in near.enumerate() {
            if count % 1024 == 0 && !go_on() {
                return Err(Stopped);
            }
            cosines[at] = self.cosine(query, at);
        }
        Ok(cosines)
    }

    /// The cosine of one chunk, in scope or not; 0 where there is no vector.
    pub(crate) fn cosine(&self, query: &Quantized, at: usize) -> f32 {
        let row = self.bytes.get(at * self.dimensions..(at + 1) * self.dimensions);
        match (row, self.scales.get(at)) {
            (Some(row), Some(scale)) if self.compares(query) => query.cosine(row, *scale),
            _ => 0.0,
        }
    }

    /// Whether a chunk has one.
    pub(crate) fn has(&self, at: usize) -> bool {
        self.scales.get(at).is_some_and(|scale| *scale > 0.0)
    }

    fn compares(&self, query: &Quantized) -> bool {
        query.bytes.len() == self.dimensions && self.dimensions > 0
    }

    pub(crate) fn bytes(&self) -> usize {
        let sketch = self.sketch.as_ref().map_or(0, |sketch| 8 * sketch.bits.len());
        self.bytes.len() + 4 * self.scales.len() + sketch
    }
}

impl Quantized {
    #[expect(clippy::cast_precision_loss, reason = "a sum of products of bytes")]
    fn cosine(&self, row: &[i8], scale: f32) -> f32 {
        dot(row, &self.bytes) as f32 * scale * self.scale
    }
}

/// Of a chunk out of scope.
const OUT: u16 = u16::MAX;

impl Sketch {
    /// How many sides differ, and how far one may be so that about as many are nearer as are wanted.
    fn distances(
        &self,
        query: &Quantized,
        allowed: &[bool],
        wanted: usize,
        go_on: GoOn<'_>,
    ) -> Result<(Vec<u16>, u16), Stopped> {
        let own: Vec<u64> = sides(&query.bytes, query.scale, &self.middle).collect();
        let mut distances = vec![OUT; allowed.len()];
        let mut counts = vec![0_usize; 64 * self.words + 1];
        let rows = self.bits.chunks_exact(self.words).zip(allowed).zip(&mut distances);
        for (at, ((row, allowed), distance)) in rows.enumerate() {
            if at % 16_384 == 0 && !go_on() {
                return Err(Stopped);
            }
            if *allowed {
                let differ: u32 = row.iter().zip(&own).map(|(a, b)| (a ^ b).count_ones()).sum();
                counts[differ as usize] += 1;
                *distance = u16::try_from(differ).unwrap_or(OUT - 1);
            }
        }
        let mut nearer = 0;
        let furthest = counts.iter().position(|count| {
            nearer += count;
            nearer >= wanted
        });
        Ok((distances, furthest.and_then(|at| u16::try_from(at).ok()).unwrap_or(OUT - 1)))
    }
}

/// One bit for each number of a vector: whether it is beyond the middle.
fn sides<'a>(row: &'a [i8], scale: f32, middle: &'a [f32]) -> impl Iterator<Item = u64> + 'a {
    row.chunks(64).zip(middle.chunks(64)).map(move |(row, middle)| {
        let beyond =
            row.iter().zip(middle).map(|(byte, middle)| f32::from(*byte) * scale > *middle);
        beyond.enumerate().fold(0, |word, (at, beyond)| word | u64::from(beyond) << at)
    })
}

fn dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(i16::from(*a) * i16::from(*b))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_on;

    const DIMENSIONS: usize = 256;

    /// Vectors as models make them: all of them on one side of zero, in themes, each with something of its own.
    fn corpus(count: usize) -> (Vectors, Vec<Quantized>) {
        let mut state = 11_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            f32::from(u16::try_from(state >> 48).unwrap_or_default()) / 32_768.0 - 1.0
        };
        let mut random = || (0..DIMENSIONS).map(|_| next()).collect::<Vec<f32>>();
        let common = random();
        let themes: Vec<Vec<f32>> = (0..50).map(|_| random()).collect();
        let mut vectors = Vectors::new(DIMENSIONS);
        let mut queries = Vec::new();
        for at in 0..count {
            let own = random();
            let mix = |at: usize, weight: f32| {
                let theme = &themes[at % themes.len()];
                let parts = common.iter().zip(theme).zip(&own);
                parts.map(|((c, t), o)| 1.5 * c + t + weight * o).collect::<Vec<f32>>()
            };
            let vector = Quantized::new(&mix(at, 0.7)).unwrap();
            if at % (count / 20) == 0 {
                queries.push(Quantized::new(&mix(at + 1, 0.5)).unwrap());
            }
            vectors.push(Some(&vector));
        }
        (vectors, queries)
    }

    fn nearest(cosines: &[f32], count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..cosines.len()).collect();
        order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]));
        order.truncate(count);
        order
    }

    #[test]
    fn after_a_look_at_sketches_the_nearest_are_found() {
        let (vectors, queries) = corpus(33_000);
        let vectors = vectors.sketched();
        assert!(vectors.sketch.is_some());
        // Every third is somebody else's.
        let allowed: Vec<bool> = (0..33_000).map(|at| at % 3 != 0).collect();
        let (mut found, mut wanted) = (0, 0);
        for query in &queries {
            let exact = vectors.cosines(query, &allowed, &go_on).unwrap();
            let near = vectors.nearest(query, &allowed, &go_on).unwrap();
            let compared = near.iter().filter(|cosine| **cosine != 0.0).count();
            assert!((COMPARED..2 * COMPARED).contains(&compared), "{compared}");
            for (at, (exact, near)) in exact.iter().zip(&near).enumerate() {
                assert!(*near == 0.0 || (near == exact && allowed[at]));
            }
            for at in nearest(&exact, 100) {
                wanted += 1;
                found += usize::from(near[at] != 0.0);
                assert!((vectors.cosine(query, at) - exact[at]).abs() < f32::EPSILON);
            }
        }
        assert!(found * 1000 >= wanted * 990, "{found} of {wanted}");
    }

    #[test]
    fn few_vectors_are_all_compared() {
        let (vectors, queries) = corpus(5_000);
        let vectors = vectors.sketched();
        assert!(vectors.sketch.is_none());
        let allowed = vec![true; 5_000];
        let exact = vectors.cosines(&queries[0], &allowed, &go_on).unwrap();
        assert_eq!(vectors.nearest(&queries[0], &allowed, &go_on).unwrap(), exact);
    }
}
