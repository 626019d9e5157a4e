//! The latent space: directions in which the corpus's own texts vary together, so that texts which share no word may
//! still be near each other.
//!
//! The basis spans the strongest right singular vectors of the matrix of chunks by weighted terms, found by subspace
//! iteration from a fixed start: the same corpus gives the same space. Every chunk and every query is placed by the
//! same projection, so a chunk that came after the space was learned lies where it would have lain before.

use crate::lexical::Count;
use crate::vectors::Quantized;
use crate::vocabulary::Term;
use crate::{GoOn, Stopped};

/// A learned space.
#[derive(Debug)]
pub(crate) struct Latent {
    dimensions: usize,
    /// By term: its place in `basis`, or `NOWHERE`.
    places: Vec<u32>,
    /// By place: what the term's occurrence is worth.
    weights: Vec<f32>,
    /// By place, `dimensions` each.
    basis: Vec<f32>,
    /// How many chunks it was learned from.
    learned_from: usize,
}

const NOWHERE: u32 = u32::MAX;
/// More help little and cost time in every search.
const DIMENSIONS: usize = 96;
/// Further directions that are carried along while iterating, so that the last wanted ones come out well.
const SPARE: usize = 8;
const ITERATIONS: usize = 4;
/// Below this a corpus has nothing to learn from.
const MIN_CHUNKS: usize = 24;
/// The most frequent ones; the space is for what texts have in common.
const MAX_TERMS: usize = 50_000;
/// A corpus with more chunks is learned from evenly spread ones: the directions are the same, the time is bounded.
const MAX_CHUNKS: usize = 30_000;
/// Directions weaker than the strongest by this factor are noise.
const WEAKEST: f64 = 1e-6;

impl Latent {
    /// Learns from all chunks' counts. `None` if there is too little to learn from.
    pub(crate) fn learn(
        counts: &[Vec<Count>],
        terms: usize,
        go_on: GoOn<'_>,
    ) -> Result<Option<Self>, Stopped> {
        if counts.len() < MIN_CHUNKS {
            return Ok(None);
        }
        let (places, weights) = places(counts, terms);
        let mut space =
            Self { dimensions: 0, places, weights, basis: Vec::new(), learned_from: counts.len() };
        let step = counts.len().div_ceil(MAX_CHUNKS).max(1);
        let rows: Vec<Vec<(u32, f32)>> =
            counts.iter().step_by(step).map(|counts| space.row(counts)).collect();
        let terms = space.weights.len();
        // In as many directions as there are texts or terms, each would lie apart from all others.
        let wanted = DIMENSIONS.min(rows.len() / 4).min(terms / 6);
        let mut width = (wanted + SPARE).min(terms).min(rows.len());
        if wanted < 2 || width < 2 {
            return Ok(None);
        }
        let mut basis = start(terms, width);
        for _ in 0..ITERATIONS {
            basis = turned(&rows, &basis, width, go_on)?;
            let turn = orthonormal(&gram(&basis, width, go_on)?, width);
            basis = rotated(&basis, width, &turn, go_on)?;
            width = turn.to;
        }
        space.strongest(&rows, &basis, width, wanted, go_on)?;
        Ok((space.dimensions > 1).then_some(space))
    }

    /// Keeps of a basis the directions in which the rows vary most.
    fn strongest(
        &mut self,
        rows: &[Vec<(u32, f32)>],
        basis: &[f32],
        width: usize,
        wanted: usize,
        go_on: GoOn<'_>,
    ) -> Result<(), Stopped> {
        let mut projected = Vec::with_capacity(rows.len() * width);
        for row in rows {
            let at = projected.len();
            projected.resize(at + width, 0.0);
            project(row, basis, width, &mut projected[at..]);
        }
        let gram = gram(&projected, width, go_on)?;
        let (values, vectors) = eigen(gram, width);
        let most = values.first().copied().unwrap_or_default();
        let kept = values.iter().take(wanted).take_while(|value| **value > most * WEAKEST).count();
        let turn = columns(&vectors, width, kept, |_| 1.0);
        self.basis = rotated(basis, width, &Turn { to: kept, values: turn }, go_on)?;
        self.dimensions = kept;
        Ok(())
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    pub(crate) fn learned_from(&self) -> usize {
        self.learned_from
    }

    /// Where a chunk lies; `None` if nothing of it is known.
    pub(crate) fn place(&self, counts: &[Count]) -> Option<Quantized> {
        self.placed(&self.row(counts))
    }

    /// Where a query lies, whose terms come with how often they are in it.
    pub(crate) fn place_query(&self, terms: &[(Term, f32)]) -> Option<Quantized> {
        let row: Vec<(u32, f32)> = terms
            .iter()
            .filter_map(|(term, count)| {
                let place = self.place_of(*term)?;
                Some((place, (1.0 + count.ln()) * self.weights[place as usize]))
            })
            .collect();
        self.placed(&row)
    }

    fn placed(&self, row: &[(u32, f32)]) -> Option<Quantized> {
        let mut place = vec![0.0; self.dimensions];
        project(row, &self.basis, self.dimensions, &mut place);
        Quantized::new(&place)
    }

    fn place_of(&self, term: Term) -> Option<u32> {
        self.places.get(term as usize).copied().filter(|place| *place != NOWHERE)
    }

    /// A chunk's row of the matrix: of length one, so that long chunks do not decide alone.
    fn row(&self, counts: &[Count]) -> Vec<(u32, f32)> {
        let mut row: Vec<(u32, f32)> = counts
            .iter()
            .filter_map(|count| {
                let place = self.place_of(count.term)?;
                let n =
                    2.0 * f32::from(count.title) + f32::from(count.heading) + f32::from(count.body);
                Some((place, (1.0 + n.ln()) * self.weights[place as usize]))
            })
            .collect();
        let length =
            row.iter().map(|(_, value)| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        row.iter_mut().for_each(|(_, value)| *value /= length);
        row
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.places.len() + self.weights.len() + self.basis.len())
    }
}

/// Which terms take part, those in at least two chunks, and what each is worth.
#[expect(clippy::cast_precision_loss, reason = "counts of chunks, for a logarithm")]
fn places(counts: &[Vec<Count>], terms: usize) -> (Vec<u32>, Vec<f32>) {
    let mut frequencies = vec![0_u32; terms];
    for count in counts.iter().flatten() {
        frequencies[count.term as usize] += 1;
    }
    let mut chosen: Vec<u32> =
        (0_u32..).zip(&frequencies).filter(|(_, df)| **df >= 2).map(|(term, _)| term).collect();
    if chosen.len() > MAX_TERMS {
        chosen.sort_unstable_by_key(|term| (std::cmp::Reverse(frequencies[*term as usize]), *term));
        chosen.truncate(MAX_TERMS);
        chosen.sort_unstable();
    }
    let mut places = vec![NOWHERE; terms];
    let n = counts.len() as f32;
    let mut weights = Vec::with_capacity(chosen.len());
    for (place, term) in (0_u32..).zip(chosen) {
        let df = frequencies[term as usize] as f32;
        places[term as usize] = place;
        weights.push((1.0 + (n - df + 0.5) / (df + 0.5)).ln());
    }
    (places, weights)
}

/// Numbers without a pattern, the same every time.
fn start(terms: usize, width: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Sixteen bits around zero.
        f32::from(u16::try_from(state >> 48).unwrap_or_default()) / 32_768.0 - 1.0
    };
    (0..terms * width).map(|_| next()).collect()
}

fn project(row: &[(u32, f32)], basis: &[f32], width: usize, into: &mut [f32]) {
    for (place, value) in row {
        let at = *place as usize * width;
        for (sum, basis) in into.iter_mut().zip(&basis[at..at + width]) {
            *sum += value * basis;
        }
    }
}

/// The matrix, then its transpose, applied to a basis: the strong directions grow.
fn turned(
    rows: &[Vec<(u32, f32)>],
    basis: &[f32],
    width: usize,
    go_on: GoOn<'_>,
) -> Result<Vec<f32>, Stopped> {
    let mut grown = vec![0_f32; basis.len()];
    let mut projected = vec![0_f32; width];
    for (at, row) in rows.iter().enumerate() {
        if at % 256 == 0 && !go_on() {
            return Err(Stopped);
        }
        projected.fill(0.0);
        project(row, basis, width, &mut projected);
        for (place, value) in row {
            let at = *place as usize * width;
            for (sum, part) in grown[at..at + width].iter_mut().zip(&projected) {
                *sum += value * part;
            }
        }
    }
    Ok(grown)
}

/// The products of all pairs of columns.
fn gram(values: &[f32], width: usize, go_on: GoOn<'_>) -> Result<Vec<f64>, Stopped> {
    let mut gram = vec![0_f64; width * width];
    // Sums of some rows in single precision, sums of these in double.
    let mut part = vec![0_f32; width * width];
    for rows in values.chunks(width * 256) {
        if !go_on() {
            return Err(Stopped);
        }
        part.fill(0.0);
        for row in rows.chunks_exact(width) {
            for (at, value) in row.iter().enumerate() {
                for (sum, other) in part[at * width..(at + 1) * width].iter_mut().zip(row) {
                    *sum += value * other;
                }
            }
        }
        gram.iter_mut().zip(&part).for_each(|(sum, part)| *sum += f64::from(*part));
    }
    Ok(gram)
}

/// A change of basis.
struct Turn {
    to: usize,
    /// By column of the old basis, `to` each.
    values: Vec<f32>,
}

/// What makes columns with these products orthonormal; dependent ones are dropped.
fn orthonormal(gram: &[f64], width: usize) -> Turn {
    let (values, vectors) = eigen(gram.to_vec(), width);
    let most = values.first().copied().unwrap_or_default();
    let kept = values.iter().take_while(|value| **value > most * 1e-12).count().max(1);
    let turned =
        columns(&vectors, width, kept, |at| 1.0 / values[at].max(f64::MIN_POSITIVE).sqrt());
    Turn { to: kept, values: turned }
}

/// The first eigenvectors as columns, each scaled.
#[expect(clippy::cast_possible_truncation, reason = "single precision is what the basis has")]
fn columns(vectors: &[f64], width: usize, kept: usize, scale: impl Fn(usize) -> f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(width * kept);
    for row in 0..width {
        out.extend((0..kept).map(|at| (vectors[at * width + row] * scale(at)) as f32));
    }
    out
}

fn rotated(basis: &[f32], width: usize, turn: &Turn, go_on: GoOn<'_>) -> Result<Vec<f32>, Stopped> {
    let mut out = vec![0_f32; basis.len() / width * turn.to];
    for (at, (row, out)) in basis.chunks_exact(width).zip(out.chunks_exact_mut(turn.to)).enumerate()
    {
        if at % 1024 == 0 && !go_on() {
            return Err(Stopped);
        }
        for (value, turn) in row.iter().zip(turn.values.chunks_exact(turn.to)) {
            for (sum, turn) in out.iter_mut().zip(turn) {
                *sum += value * turn;
            }
        }
    }
    Ok(out)
}

/// Eigenvalues of a symmetric matrix, the largest first, and their vectors one after the other (Jacobi's rotations).
fn eigen(mut matrix: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut vectors = vec![0_f64; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..MAX_SWEEPS {
        let diagonal: f64 = (0..n).map(|i| matrix[i * n + i].powi(2)).sum();
        let rest: f64 = matrix.iter().map(|v| v * v).sum::<f64>() - diagonal;
        if rest <= diagonal * 1e-22 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut matrix, &mut vectors, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| matrix[b * n + b].total_cmp(&matrix[a * n + a]).then(a.cmp(b)));
    let values = order.iter().map(|at| matrix[at * n + at].max(0.0)).collect();
    let sorted =
        order.iter().flat_map(|at| vectors[at * n..(at + 1) * n].iter().copied()).collect();
    (values, sorted)
}

const MAX_SWEEPS: usize = 30;

/// Makes the entry at (p, q) zero. Rows of `vectors` are the eigenvectors.
fn rotate(matrix: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let (app, aqq, apq) = (matrix[p * n + p], matrix[q * n + q], matrix[p * n + q]);
    if apq.abs() <= f64::MIN_POSITIVE || apq.abs() < 1e-15 * (app * aqq).abs().sqrt() {
        return;
    }
    let theta = (aqq - app) / (2.0 * apq);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (akp, akq) = (matrix[k * n + p], matrix[k * n + q]);
        matrix[k * n + p] = c * akp - s * akq;
        matrix[k * n + q] = s * akp + c * akq;
    }
    turn_rows(matrix, n, p, q, c, s);
    turn_rows(vectors, n, p, q, c, s);
}

fn turn_rows(values: &mut [f64], n: usize, p: usize, q: usize, c: f64, s: f64) {
    let (before, after) = values.split_at_mut(q * n);
    for (a, b) in before[p * n..(p + 1) * n].iter_mut().zip(&mut after[..n]) {
        let (x, y) = (*a, *b);
        *a = c * x - s * y;
        *b = s * x + c * y;
    }
}
