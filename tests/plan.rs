//! `flamingo plan`: the paper's runs, and what cannot be planned.

use serde_json::Value;

use crate::cli::{fails, flamingo, stdout};

fn json(args: &[&str]) -> Value {
    let output = flamingo(&[&["plan", "--json"], args].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&stdout(&output)).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn the_papers_runs_are_planned_as_the_paper_has_them() {
    for (model, precision, memory, trained) in [
        ("openflamingo-3b", "fp32", 80e9, 944_025_648.0),
        ("openflamingo-4b", "fp32", 40e9, 960_763_936.0),
        ("openflamingo-9b", "amp_bf16", 80e9, 1_178_847_248.0),
    ] {
        let plan = json(&["--model", model]);
        assert_eq!(plan["precision"], precision);
        assert_eq!((number(&plan["devices"]), number(&plan["device_memory"])), (64.0, memory));
        assert_eq!(number(&plan["trained_parameters"]), trained);
        // 60 million documents, 64 devices of 32.
        assert_eq!(number(&plan["steps"]), 29_296.0);
        let [whole, checkpointed] = [&plan["ways"][0], &plan["ways"][1]];
        for way in [whole, checkpointed] {
            let memory = way["memory"].as_object().expect("memory");
            let items = memory.iter().filter(|(name, _)| !["total", "in_use", "moment"].contains(&name.as_str()));
            assert_eq!(items.map(|(_, bytes)| number(bytes)).sum::<f64>(), number(&memory["total"]), "{model}");
            assert_eq!(way["fits"], number(&memory["total"]) <= number(&plan["device_memory"]));
            assert!(number(&way["days"]) > 0.5 && number(&way["days"]) < 200.0, "{model}: {}", way["days"]);
            assert!(number(&way["cost"]) > 0.0 && number(&way["tokens_per_second"]) > 0.0);
        }
        assert!(number(&checkpointed["memory"]["activations"]) < number(&whole["memory"]["activations"]) / 3.0);
        assert!(number(&checkpointed["days"]) > number(&whole["days"]));

        let page = stdout(&flamingo(&["plan", "--model", model]));
        for said in [
            "memory of a device",
            "optimizer",
            "checkpointed",
            "communication",
            "tokens/s",
            "days",
            "dollars",
            "Assumptions",
        ] {
            assert!(page.contains(said), "{model}: no {said} in {page}");
        }
        for source in ["\n  paper", "\n  upstream", "\n  data sheet", "\n  assumed"] {
            assert!(page.contains(source), "{model}: nothing from {source} in {page}");
        }
    }
    assert!(stdout(&flamingo(&["plan", "--model", "openflamingo-9b"])).contains("benches/plan.md"));
}

#[test]
fn what_is_asked_for_counts() {
    let base = json(&[]);
    let more = |args: &[&str]| json(args);
    let days = |plan: &Value| number(&plan["ways"][0]["days"]);
    assert!(days(&more(&["--devices", "128"])) < days(&base));
    assert!(days(&more(&["--efficiency", "0.5"])) < days(&base));
    assert!(days(&more(&["--interconnect", "ethernet-10g"])) > days(&base));
    assert!(number(&more(&["--bf16-gradients"])["wire_bytes"]) < number(&base["wire_bytes"]));
    let alone = more(&["--devices", "1"]);
    assert_eq!(number(&alone["wire_bytes"]), 0.0);
    assert!(number(&alone["ways"][0]["memory"]["optimizer"]) > 10.0 * number(&base["ways"][0]["memory"]["optimizer"]));
    let batch = base["ways"][1]["largest_batch"].as_array().expect("a batch that fits");
    let [pairs, documents] = [0, 1].map(|i| batch[i].as_u64().expect("rows"));
    let with = |pairs: u64, documents: u64| {
        let [pairs, documents] = [pairs, documents].map(|rows| rows.to_string());
        more(&["--batch-size-laion", &pairs, "--batch-size-mmc4", &documents])["ways"][1]["fits"].clone()
    };
    assert_eq!((with(pairs, documents), with(pairs + 2, documents + 1)), (Value::Bool(true), Value::Bool(false)));
    assert_eq!(more(&["--price", "0"])["ways"][0]["cost"], 0.0);
}

#[test]
fn what_cannot_be_planned_is_told_with_what_would_do() {
    for (args, said) in [
        (vec!["--model", "openflamingo-9"], "did you mean openflamingo-9b?"),
        (vec!["--device-flops", "300"], "add --device-memory"),
        (vec!["--batch-size-laion", "0", "--batch-size-mmc4", "0"], "nothing to train on"),
        (vec!["--devices", "0"], "--devices"),
        (vec!["--efficiency", "0"], "--efficiency must be above 0"),
        (vec!["--images-mmc4", "7"], "--mmc4-max-num-images"),
        (vec!["--price=-1"], "not negative"),
        (vec!["--model", "openflamingo-opt-125m", "--max-tokens-mmc4", "4096"], "at most 2048"),
    ] {
        assert!(fails(&[vec!["plan"], args.clone()].concat()).contains(said), "{args:?}");
    }
    for (option, fix) in [
        ("--device-memory", "80GB"),
        ("--device-flops", "a100-80gb"),
        ("--interconnect", "infiniband-200g"),
        ("--precision", "amp_bf16"),
    ] {
        let output = flamingo(&["plan", option, "much"]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{option}: {error}");
        assert!(error.contains(fix), "{option}: {error}");
    }
}
