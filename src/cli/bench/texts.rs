//! English-looking texts of mixed length, the same for the same seed on every machine.
//!
//! Real words in plausible order, so that a tokenizer splits them as it would real text; lengths spread
//! evenly on a logarithmic scale from 5 to 200 words, as queries and passages are.

use std::f64::consts::E;

const MIN_WORDS: f64 = 5.0;
const MAX_WORDS: f64 = 200.0;

const DETERMINERS: &[&str] = &["the", "a", "this", "every", "another", "our", "their", "some", "each", "that"];
const ADJECTIVES: &[&str] = &[
    "small",
    "early",
    "quiet",
    "careful",
    "broken",
    "public",
    "recent",
    "northern",
    "expensive",
    "simple",
    "heavy",
    "green",
    "unexpected",
    "familiar",
    "digital",
    "narrow",
    "patient",
    "ordinary",
    "bright",
    "annual",
    "difficult",
    "local",
    "reliable",
    "ancient",
    "medical",
    "hidden",
    "warm",
    "financial",
    "temporary",
    "wooden",
];
const NOUNS: &[&str] = &[
    "river",
    "teacher",
    "report",
    "engine",
    "market",
    "garden",
    "question",
    "village",
    "library",
    "doctor",
    "contract",
    "bridge",
    "student",
    "recipe",
    "journey",
    "computer",
    "minister",
    "winter",
    "measurement",
    "harbour",
    "customer",
    "newspaper",
    "factory",
    "orchestra",
    "mountain",
    "insurance",
    "window",
    "experiment",
    "neighbour",
    "railway",
    "battery",
    "language",
    "forest",
    "payment",
    "museum",
    "software",
    "kitchen",
    "election",
    "island",
    "telescope",
    "argument",
    "bicycle",
];
const VERBS: &[&str] = &[
    "changed",
    "reached",
    "explained",
    "repaired",
    "followed",
    "described",
    "carried",
    "replaced",
    "discovered",
    "ignored",
    "supported",
    "crossed",
    "improved",
    "delayed",
    "studied",
    "measured",
    "painted",
    "sold",
    "remembered",
    "protected",
    "questioned",
    "opened",
    "finished",
    "connected",
    "reduced",
];
const PREPOSITIONS: &[&str] = &[
    "near", "behind", "without", "after", "before", "inside", "across", "beyond", "during", "against", "beside",
    "under",
];
const ADVERBS: &[&str] = &[
    "quickly",
    "slowly",
    "often",
    "almost",
    "carefully",
    "suddenly",
    "together",
    "rarely",
    "again",
    "finally",
    "usually",
];
const LINKS: &[&str] = &["because", "although", "while", "and", "but", "so", "until", "when", "where"];
const OPENERS: &[&str] =
    &["However,", "Last year", "In the end", "For example,", "Yesterday", "According to the report,"];
const QUESTIONS: &[&str] =
    &["how do i find", "what is", "who repaired", "why was there", "where can i buy", "when did we see"];

/// An endless supply of texts.
#[derive(Debug)]
pub struct Texts {
    random: SplitMix64,
}

impl Texts {
    pub fn new(seed: u64) -> Self {
        Texts { random: SplitMix64(seed) }
    }

    /// A text of 5 to 200 words.
    pub fn text(&mut self) -> String {
        let wanted = (MIN_WORDS.ln() + self.random.unit() * (MAX_WORDS / MIN_WORDS).ln()).min(MAX_WORDS.ln());
        let wanted = E.powf(wanted).round() as usize;
        let mut words: Vec<String> = Vec::with_capacity(wanted + 16);
        while words.len() < wanted {
            self.sentence(&mut words);
        }
        words.truncate(wanted);
        let mut text = words.join(" ");
        let cut = text.trim_end_matches([',', '.']).len();
        text.truncate(cut);
        text.push('.');
        text
    }

    /// A short question, as one would type it.
    pub(super) fn query(&mut self) -> String {
        let (question, determiner) = (self.pick(QUESTIONS), self.pick(DETERMINERS));
        let (adjective, noun) = (self.pick(ADJECTIVES), self.pick(NOUNS));
        format!("{question} {determiner} {adjective} {noun}")
    }

    fn sentence(&mut self, words: &mut Vec<String>) {
        let start = words.len();
        if self.random.chance(0.2) {
            words.extend(self.pick(OPENERS).split(' ').map(str::to_owned));
        }
        self.clause(words);
        while self.random.chance(0.35) {
            words.push(self.pick(LINKS).to_owned());
            self.clause(words);
        }
        if let Some(first) = words.get_mut(start) {
            capitalise(first);
        }
        if let Some(last) = words.last_mut() {
            last.push('.');
        }
    }

    fn clause(&mut self, words: &mut Vec<String>) {
        self.noun_phrase(words);
        if self.random.chance(0.3) {
            words.push(self.pick(ADVERBS).to_owned());
        }
        words.push(self.pick(VERBS).to_owned());
        self.noun_phrase(words);
        if self.random.chance(0.4) {
            words.push(self.pick(PREPOSITIONS).to_owned());
            self.noun_phrase(words);
        }
    }

    fn noun_phrase(&mut self, words: &mut Vec<String>) {
        let determiner = self.pick(DETERMINERS);
        let follower = if self.random.chance(0.6) { Some(self.pick(ADJECTIVES)) } else { None };
        let noun = self.pick(NOUNS);
        let next = follower.unwrap_or(noun);
        let vowel = next.starts_with(['a', 'e', 'i', 'o', 'u']);
        words.push(if determiner == "a" && vowel { "an" } else { determiner }.to_owned());
        words.extend(follower.map(str::to_owned));
        words.push(noun.to_owned());
    }

    fn pick(&mut self, from: &'static [&'static str]) -> &'static str {
        from[(self.random.next() % from.len() as u64) as usize]
    }
}

fn capitalise(word: &mut String) {
    if let Some(first) = word.get(..1).map(str::to_ascii_uppercase) {
        word.replace_range(..1, &first);
    }
}

/// Steele, Lea and Flood's generator: a few lines whose output never changes under us.
#[derive(Debug)]
pub(super) struct SplitMix64(pub(super) u64);

impl SplitMix64 {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_mixed_from_5_to_200_words() {
        let mut texts = Texts::new(1);
        let mut lengths: Vec<usize> = (0..2000).map(|_| texts.text().split(' ').count()).collect();
        lengths.sort_unstable();
        assert!(
            (5..=6).contains(&lengths[0]) && (190..=200).contains(&lengths[1999]),
            "{:?}",
            (lengths[0], lengths[1999])
        );
        // Half the texts are shorter than the geometric mean of the ends.
        assert!((28..=36).contains(&lengths[1000]), "{}", lengths[1000]);
    }

    #[test]
    fn the_same_seed_gives_the_same_texts_and_another_gives_others() {
        let take = |seed| {
            let mut texts = Texts::new(seed);
            (0..5).map(|_| texts.text()).collect::<Vec<_>>()
        };
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
        // Known output of SplitMix64 for seed 0, so that recorded results stay comparable.
        assert_eq!(SplitMix64(0).next(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn texts_read_like_sentences() {
        let mut texts = Texts::new(3);
        for _ in 0..200 {
            let text = texts.text();
            assert!(text.starts_with(|c: char| c.is_ascii_uppercase()) && text.ends_with('.'), "{text}");
            assert!(!text.contains("..") && !text.contains("  ") && !text.contains(" a a"), "{text}");
        }
    }
}
