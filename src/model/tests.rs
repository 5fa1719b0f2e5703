use std::path::PathBuf;

use serde_json::json;

use super::*;
use crate::repository::F32Matmul;
use crate::value::Task;

fn spec(family: &str) -> Spec {
    Spec {
        model: "m".into(),
        version: "v".into(),
        dir: PathBuf::new(),
        task: Task::Embed,
        family: family.into(),
        config: json!({ "model_type": family }),
        embedding: None,
        preprocessor: None,
        weight_files: Vec::new(),
        labels: Vec::new(),
        f32_matmul: F32Matmul::F32,
        cache_tokens: None,
        sequences: None,
    }
}

#[test]
fn a_family_is_found_by_its_name_and_by_every_model_type() {
    for (model_type, name) in
        [("bert", "bert"), ("roberta", "bert"), ("xlm-roberta", "bert"), ("distilbert", "bert"), ("vit", "vit")]
    {
        assert_eq!(family(&spec(model_type)).unwrap().name, name);
    }
}

#[test]
fn an_unknown_family_is_refused_with_the_known_ones() {
    let message = family(&spec("mamba")).err().unwrap().to_string();
    assert!(message.contains("m/v/config.json") && message.contains("'mamba'"), "{message}");
    assert!(message.contains("bert, roberta, xlm-roberta, distilbert, vit"), "{message}");
}

/// Answers with the number of tokens; takes anything.
struct Count;

impl OneShot<Tokens> for Count {
    fn warm(&mut self, _: bool, _: &Progress) -> Warmth {
        Warmth::default()
    }

    fn forward(&mut self, batch: &[Tokens]) -> Result<Pending> {
        let rows: Vec<f32> = batch.iter().map(|input| input.len() as f32).collect();
        let rows = crate::ops::Tensor::from_vec(rows, (batch.len(), 1), &Device::Cpu);
        Pending::ready(rows.unwrap())
    }
}

#[test]
fn an_input_of_another_kind_is_refused_wherever_it_stands_in_the_batch() {
    let mut model = Model::Text(Box::new(Count));
    let text = || Input::Tokens(Tokens { ids: vec![1, 2], type_ids: vec![0, 0] });
    let image = || Input::Pixels(Pixels { data: vec![0.0], channels: 1, height: 1, width: 1 });
    let two = Packed::new(vec![text(), text()]).unwrap();
    assert_eq!(model.forward(&two, two.all()).unwrap().wait().unwrap(), [[2.0], [2.0]]);
    let images = Packed::new(vec![image()]).unwrap();
    assert!(matches!(model.forward(&images, images.all()).unwrap_err(), Error::BadRequest { .. }));
    assert!(matches!(Packed::new(vec![text(), image()]).unwrap_err(), Error::BadRequest { .. }));
}
