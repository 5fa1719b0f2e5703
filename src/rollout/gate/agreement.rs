//! What models that write are held to beside everything else: that the candidate finds stored texts as likely as the live
//! version does, and that neither its first token nor those after it take much longer.
//!
//! Both versions judge the same texts, in passes of background work on the engine. Texts are compared token by token, so only
//! where both cut them alike; where tokenizers differ the contract says so.

use super::{Findings, Prepared, Runner, SoftError, Verdict, pairs};
use crate::generation::Generation;
use crate::model::{Input, Tokens};
use crate::process::{FinishOptions, Processor};
use crate::repository::GateConfig;
use crate::value::{Output, Task};

/// Compares what both make of every case, one by one.
pub(in crate::rollout) async fn agreement(
    (candidate, processor): (&mut Runner, &Processor),
    live: &mut Runner,
    cases: &[Prepared],
    live_generation: &Generation,
    rules: &GateConfig,
) -> Result<Findings, SoftError> {
    let mut findings = Findings::default();
    if live_generation.contract.task != Task::Generate {
        return Ok(findings);
    }
    let (mut all_ours, mut all_theirs) = (Vec::new(), Vec::new());
    for prepared in cases {
        let id = Some(prepared.case.id.as_str());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (input, same) in pairs(std::slice::from_ref(prepared), live_generation) {
            if !cut_alike(&input, &same) {
                continue;
            }
            let blue = live.run(vec![same]).await?.and_then(|timed| likelihood(&live_generation.processor, timed.rows));
            let green = candidate.run(vec![input]).await?.and_then(|timed| likelihood(processor, timed.rows));
            match (blue, green) {
                (Ok(blue), Ok(green)) => {
                    theirs.extend(blue);
                    ours.extend(green);
                }
                (_, Err(error)) => findings.fault("agreement", id, &error),
                // The live version cannot be compared with; that is no fault of the candidate.
                (Err(error), _) => tracing::warn!(%error, case = id, "the live version failed a golden case"),
            }
        }
        if !ours.is_empty() {
            findings.add("logprob-agreement", id, logprobs(&ours, &theirs, rules.max_logprob_gap));
            findings.add("greedy-agreement", id, greedy(&ours, &theirs, rules.min_greedy_agreement));
            all_ours.extend(ours);
            all_theirs.extend(theirs);
        }
    }
    if !all_ours.is_empty() {
        findings.add("perplexity-ratio", None, perplexities(&all_ours, &all_theirs, rules.max_perplexity_ratio));
    }
    Ok(findings)
}

/// A token of a stored text as a version judges it: the logarithm of its probability, and of the likeliest one's.
type Judged = (f64, f64);

fn likelihood(processor: &Processor, rows: Vec<Vec<f32>>) -> crate::error::Result<Vec<Judged>> {
    let mut judged = Vec::new();
    for row in rows {
        if let Output::Likelihood { logprobs, likeliest } = processor.finish(row, &FinishOptions::default())? {
            judged.extend(logprobs.into_iter().map(f64::from).zip(likeliest.into_iter().map(f64::from)));
        }
    }
    Ok(judged)
}

fn cut_alike(ours: &Input, theirs: &Input) -> bool {
    match (ours, theirs) {
        (Input::Tokens(ours), Input::Tokens(theirs)) => ours.ids == theirs.ids && ours.type_ids == theirs.type_ids,
        _ => false,
    }
}

/// How far the logarithms lie apart, on average over the text; NaN never passes.
fn logprobs(ours: &[Judged], theirs: &[Judged], limit: f64) -> Verdict {
    let apart = ours.iter().zip(theirs).map(|((ours, _), (theirs, _))| (ours - theirs).abs());
    let measure = apart.sum::<f64>() / ours.len() as f64;
    let passed = measure <= limit && ours.len() == theirs.len();
    let message = format!("{measure:.4} apart from the live version on average over {} tokens", ours.len());
    Verdict { passed, measure, limit, message }
}

/// How much more the candidate is surprised by a token than the live version: e to what the logarithms of their probabilities differ by
/// on average (Jelinek et al., "Perplexity", 1977); NaN never passes.
fn perplexities(ours: &[Judged], theirs: &[Judged], limit: f64) -> Verdict {
    let of = |judged: &[Judged]| (-judged.iter().map(|(own, _)| own).sum::<f64>() / judged.len() as f64).exp();
    let (ours, theirs) = (of(ours), of(theirs));
    let measure = ours / theirs;
    let message = format!("a perplexity of {ours:.3}, the live version's {theirs:.3}");
    Verdict { passed: measure <= limit, measure, limit, message }
}

/// Of the tokens that the live version would itself have written in their places, the share from the first on that the
/// candidate would have too.
fn greedy(ours: &[Judged], theirs: &[Judged], limit: f64) -> Verdict {
    let would = |(own, likeliest): &Judged| own >= likeliest;
    let written = || ours.iter().zip(theirs).filter(|(_, theirs)| would(theirs));
    let (total, prefix) = (written().count(), written().take_while(|(ours, _)| would(ours)).count());
    let measure = if total == 0 { 1.0 } else { prefix as f64 / total as f64 };
    let message =
        format!("it would write {prefix} of {total} tokens that the live version would, up to the first other one");
    Verdict { passed: measure >= limit, measure, limit, message }
}

/// The shortest of texts, for which a pass computes one token as a step of writing does.
pub(super) fn single_tokens(pairs: &[(Input, Input)]) -> Vec<(Input, Input)> {
    let short = |input: &Input| match input {
        Input::Tokens(tokens) if tokens.ids.len() >= 2 => {
            Some(Input::Tokens(Tokens { ids: tokens.ids[..2].to_vec(), type_ids: vec![0; 2] }))
        }
        _ => None,
    };
    pairs.iter().filter_map(|(ours, theirs)| Some((short(ours)?, short(theirs)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_are_found_otherwise_likely_are_told_by_how_much() {
        let (live, near, far) =
            ([(-1.0, -0.5), (-0.2, -0.2)], [(-1.1, -0.5), (-0.3, -0.3)], [(-4.0, -0.1), (-0.2, -0.2)]);
        let verdict = logprobs(&near, &live, 0.5);
        assert!(verdict.passed && (verdict.measure - 0.1).abs() < 1e-9, "{verdict:?}");
        let verdict = logprobs(&far, &live, 0.5);
        assert!(!verdict.passed && (verdict.measure - 1.5).abs() < 1e-9, "{verdict:?}");
        assert!(!logprobs(&[(f64::NAN, 0.0), (0.0, 0.0)], &live, 0.5).passed);
        assert!(!logprobs(&near[..1], &live, 0.5).passed);
    }

    #[test]
    fn perplexities_are_of_all_tokens_and_one_is_over_the_other() {
        let (live, candidate) = ([(-1.0, 0.0), (-3.0, 0.0)], [(-2.0, 0.0), (-2.5, 0.0)]);
        let verdict = perplexities(&candidate, &live, 1.5);
        assert!(verdict.passed && (verdict.measure - 0.25_f64.exp()).abs() < 1e-9, "{verdict:?}");
        assert_eq!(verdict.message, "a perplexity of 9.488, the live version's 7.389");
        assert!(!perplexities(&candidate, &live, 1.2).passed && perplexities(&live, &candidate, 1.0).passed);
        assert!(!perplexities(&[(f64::NAN, 0.0)], &live, 1e9).passed);
    }

    #[test]
    fn only_what_the_live_version_would_write_is_counted_and_from_the_first_on() {
        let (yes, no) = ((-0.1, -0.1), (-2.0, -0.1));
        let live = [yes, no, yes, yes, yes];
        let verdict = greedy(&[yes, no, yes, no, yes], &live, 0.5);
        assert!(verdict.passed && verdict.measure == 0.5, "{verdict:?}");
        assert!(!greedy(&[no, yes, yes, yes, yes], &live, 0.5).passed);
        assert!(greedy(&[no, no], &[no, no], 1.0).passed, "nothing to agree on");
    }

    #[test]
    fn a_single_token_is_computed_for_a_text_of_two() {
        let text = |ids: Vec<u32>| Input::Tokens(Tokens { type_ids: vec![1; ids.len()], ids });
        let single = single_tokens(&[(text(vec![5, 6, 7]), text(vec![8, 9])), (text(vec![1]), text(vec![1, 2]))]);
        let two = |ids: Vec<u32>| Input::Tokens(Tokens { type_ids: vec![0; 2], ids });
        assert_eq!(single, [(two(vec![5, 6]), two(vec![8, 9]))]);
        assert!(!cut_alike(&text(vec![1, 2]), &two(vec![1, 2])) && cut_alike(&two(vec![1, 2]), &two(vec![1, 2])));
    }
}
