//! Pointwise activations, by the names that checkpoints give them.

use super::simd::{erf, exp, madd, wide};

/// What is applied to each value after a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x/2 (1 + erf(x/√2))`
    Gelu,
    /// The tanh form of GELU: `x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`
    GeluTanh,
    /// `x σ(1.702 x)`
    QuickGelu,
    Relu,
    /// `x σ(x)`
    Silu,
    Tanh,
    Sigmoid,
}

impl Activation {
    /// Hugging Face's `hidden_act` names that are understood, with what they mean.
    pub const NAMES: &[(&str, Activation)] = &[
        ("gelu", Activation::Gelu),
        ("gelu_python", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_python_tanh", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("tanh", Activation::Tanh),
        ("sigmoid", Activation::Sigmoid),
    ];

    /// The activation that a checkpoint calls `name`.
    pub fn named(name: &str) -> Option<Activation> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation)
    }

    /// Applies it to every value in place, on the calling thread.
    pub(super) fn apply(self, values: &mut [f32]) {
        match self {
            Activation::Gelu => gelu(values),
            Activation::GeluTanh => gelu_tanh(values),
            Activation::QuickGelu => quick_gelu(values),
            Activation::Relu => relu(values),
            Activation::Silu => silu(values),
            Activation::Sigmoid => sigmoid(values),
            // poolers and classification heads only: one row a sequence
            Activation::Tanh => values.iter_mut().for_each(|x| *x = x.tanh()),
        }
    }
}

wide! {
    fn gelu<FMA>(values: &mut [f32]) {
        for x in values {
            let half = 0.5 * *x;
            *x = madd::<FMA>(half, erf::<FMA>(*x * std::f32::consts::FRAC_1_SQRT_2), half);
        }
    }
}

wide! {
    fn gelu_tanh<FMA>(values: &mut [f32]) {
        // (1 + tanh y) / 2 = 1 / (1 + e^-2y), which keeps its relative accuracy where tanh y is near -1
        const MINUS_TWO_SQRT_2_OVER_PI: f32 = -1.595_769;
        for x in values {
            let cubic = madd::<FMA>(0.044_715 * *x * *x, *x, *x);
            *x /= 1.0 + exp::<FMA>(MINUS_TWO_SQRT_2_OVER_PI * cubic);
        }
    }
}

wide! { fn quick_gelu<FMA>(values: &mut [f32]) { for x in values { *x /= 1.0 + exp::<FMA>(-1.702 * *x); } } }
wide! { fn silu<FMA>(values: &mut [f32]) { for x in values { *x /= 1.0 + exp::<FMA>(-*x); } } }
wide! { fn sigmoid<FMA>(values: &mut [f32]) { for x in values { *x = 1.0 / (1.0 + exp::<FMA>(-*x)); } } }

fn relu(values: &mut [f32]) {
    for x in values {
        // not max(): that would turn NaN into 0
        *x = if *x < 0.0 { 0.0 } else { *x };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(activation: Activation, x: f64) -> f64 {
        let sigmoid = |y: f64| 1.0 / (1.0 + (-y).exp());
        match activation {
            Activation::Gelu => 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Relu => x.max(0.0),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
        }
    }

    #[test]
    fn every_activation_is_within_a_millionth_of_its_definition() {
        let xs: Vec<f32> = (-20_003..20_000).map(|i| i as f32 * 1e-3).collect();
        for &(name, activation) in Activation::NAMES {
            let mut ys = xs.clone();
            activation.apply(&mut ys);
            for (&x, &y) in xs.iter().zip(&ys) {
                let want = exact(activation, f64::from(x));
                let error = (f64::from(y) - want).abs() / want.abs().max(1.0);
                assert!(error < 1e-6, "{name}({x}) = {y}, expected {want}");
            }
        }
    }

    #[test]
    fn nan_is_never_hidden() {
        for &(name, activation) in Activation::NAMES {
            let mut values = vec![f32::NAN; 37];
            activation.apply(&mut values);
            assert!(values.iter().all(|v| v.is_nan()), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_not_guessed() {
        assert_eq!(Activation::named("gelu"), Some(Activation::Gelu));
        assert_eq!(Activation::named("gelu_10"), None);
        assert_eq!(Activation::named("GELU"), None);
    }
}
