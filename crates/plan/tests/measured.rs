//! Planned memory beside what was measured. `benches/plan.md` says how, and what is compared.

use std::path::Path;

use flamingo_config::ModelConfig;
use flamingo_plan::{Device, Memory, Precision, Run, Stream, Way, plan};

const MIB: f64 = (1 << 20) as f64;

/// What a process takes beside model and data, in MiB: in the run that measured f32, and in that of bf16.
const PROCESS: [f64; 2] = [42.0, 44.0];

/// A model and what it is trained on, as in `benches/plan.py`.
struct Case {
    d_model: usize,
    layers: usize,
    every: usize,
    rows: u64,
    tokens: u64,
    documents: u64,
    images: u64,
    vision_width: usize,
    depth: usize,
    vocabulary: usize,
    mosaic_gpt: bool,
}

impl Case {
    fn new([d_model, layers, every]: [usize; 3], rows: u64, tokens: u64) -> Self {
        Self {
            d_model,
            layers,
            every,
            rows,
            tokens,
            documents: 0,
            images: 3,
            vision_width: 256,
            depth: 2,
            vocabulary: 8000,
            mosaic_gpt: false,
        }
    }

    fn config(&self) -> ModelConfig {
        let Self { d_model, layers, every, vision_width, depth, vocabulary: ids, .. } = self;
        let family = if self.mosaic_gpt {
            "family = \"mosaic_gpt\"\nalibi_bias_max = 8.0\nqk_norm = true"
        } else {
            "family = \"gpt_neox\"\nrotary_pct = 1.0\nrotary_base = 1e4\nparallel_residual = false\nactivation = \"gelu\""
        };
        let text = format!(
            "name = \"plan\"\n[tokens]\nvocab_size = {}\nendofchunk = {ids}\nimage = {}\npad = {}\ngeneration_pad = {ids}\n\
             [vision]\nimage_size = 64\npatch_size = 8\nwidth = {vision_width}\nlayers = 2\nheads = 4\nmlp_width = {}\n\
             activation = \"quick_gelu\"\noutput_dim = 64\n\
             [resampler]\ndepth = {depth}\ndim_head = 64\nheads = 8\nnum_latents = 64\nff_mult = 4\n\
             [cross_attention]\nevery_n_layers = {every}\ndim_head = 64\nheads = 8\nff_mult = 4\n\
             only_attend_immediate_media = true\n\
             [decoder]\n{family}\nd_model = {d_model}\nn_heads = 8\nn_layers = {layers}\nd_ff = {}\nmax_positions = 512\n\
             norm_eps = 1e-5\n",
            ids + 3,
            ids + 1,
            ids + 2,
            4 * vision_width,
            4 * d_model,
        );
        ModelConfig::from_toml(&text).expect("a config")
    }

    fn ways(&self, precision: Precision) -> [Way; 2] {
        let stream = |rows, images: u64| Stream {
            rows,
            tokens: self.tokens,
            images: images as f64,
            most_images: images,
            samples: rows,
        };
        ways(self.config(), precision, stream(self.rows, 1), stream(self.documents, self.images))
    }
}

/// Of one device, everything kept and checkpointed.
fn ways(config: ModelConfig, precision: Precision, pairs: Stream, documents: Stream) -> [Way; 2] {
    let run = Run {
        config,
        precision,
        freeze_lm_embeddings: false,
        devices: 1,
        devices_per_node: 1,
        device: Device { name: "h100", bf16: 989e12, f32: 67e12, bandwidth: 3.35e12, memory: None },
        memory: "85.02GB".parse().expect("a size"),
        efficiency: None,
        interconnect: "nvlink".parse().expect("an interconnect"),
        bf16_gradients: false,
        vision_cache: 0,
        pairs,
        documents,
        price: 0.0,
    };
    plan(&run).expect("a plan").ways
}

#[track_caller]
fn near(what: &str, planned: f64, pinned: f64, measured: f64) {
    assert!((planned - pinned).abs() < 1.0, "{what}: {planned:.0} MiB are planned, not {pinned} as in benches/plan.md");
    assert!(
        (planned / measured - 1.0).abs() < 0.1,
        "{what}: {planned:.0} MiB are planned and {measured} were measured"
    );
}

/// Peaks of `flamingo train` on a CPU, in MiB; each kind of memory is most of it once.
#[test]
fn steps_on_a_cpu_take_what_is_planned() {
    let large = || Case::new([1024, 6, 1], 2, 32);
    let long = || Case::new([512, 12, 2], 16, 256);
    let pictures = || Case { documents: 24, images: 6, vision_width: 512, depth: 4, ..Case::new([256, 2, 1], 4, 32) };
    let mosaic_gpt = || Case { mosaic_gpt: true, ..Case::new([512, 12, 1], 16, 192) };
    let logits = || Case { vocabulary: 24000, ..Case::new([256, 4, 2], 16, 256) };
    for (name, case, way, pinned, measured) in [
        ("frozen weights", Case::new([1024, 16, 8], 2, 32), 0, 1308.0, 1309.0),
        ("trained weights", large(), 0, 1566.0, 1566.0),
        ("two streams", Case { documents: 2, ..large() }, 0, 1806.0, 1839.0),
        ("two streams, checkpointed", Case { documents: 2, ..large() }, 1, 1591.0, 1619.0),
        ("optimizer", Case::new([768, 12, 1], 1, 16), 0, 1790.0, 1900.0),
        ("activations", long(), 0, 2497.0, 2636.0),
        ("activations, checkpointed", long(), 1, 904.0, 945.0),
        ("half the rows", Case { rows: 8, ..long() }, 0, 1509.0, 1564.0),
        ("mosaic_gpt", mosaic_gpt(), 0, 3015.0, 3145.0),
        ("mosaic_gpt, checkpointed", mosaic_gpt(), 1, 1126.0, 1190.0),
        ("pictures", pictures(), 0, 2046.0, 2079.0),
        ("pictures, checkpointed", pictures(), 1, 2053.0, 1996.0),
        ("logits", logits(), 0, 1278.0, 1298.0),
        ("logits, checkpointed", logits(), 1, 949.0, 934.0),
    ] {
        let memory: &Memory = &case.ways(Precision::Fp32)[way].memory;
        near(name, (memory.in_use + memory.trained_weights) as f64 / MIB + PROCESS[0], pinned, measured);
    }
    let short = || Case::new([512, 8, 2], 8, 128);
    for (name, case, way, pinned, measured) in [
        ("amp_bf16", short(), 0, 532.0, 561.0),
        ("amp_bf16, checkpointed", short(), 1, 396.5, 439.0),
        ("amp_bf16, trained weights", Case::new([768, 6, 1], 2, 32), 0, 862.0, 950.0),
        ("amp_bf16, trained weights of powers of two", large(), 0, 1390.0, 1457.0),
    ] {
        let memory: &Memory = &case.ways(Precision::AmpBf16)[way].memory;
        near(name, (memory.in_use + memory.trained_weights) as f64 / MIB + PROCESS[1], pinned, measured);
    }
}

/// What NVIDIA's driver counted on an H100 of 79.18 GiB in MiB, rows with one picture each, everything kept and checkpointed; tokens a
/// second.
#[test]
fn steps_on_a_gpu_take_what_is_planned() {
    for (model, rows, tokens, memory, rates) in [
        ("openflamingo-3b", 8, 256, [(26_729.0, 26_546.0), (20_067.0, 20_018.0)], [8591.9, 6622.6]),
        ("openflamingo-3b", 16, 256, [(36_485.0, 33_431.0), (24_961.0, 25_655.0)], [12024.0, 8952.0]),
        ("openflamingo-3b", 4, 512, [(26_653.0, 26_613.0), (20_074.0, 19_989.0)], [8837.0, 6806.0]),
        ("openflamingo-4b", 8, 256, [(30_127.0, 30_261.0), (23_305.0, 23_573.0)], [6298.0, 4625.0]),
        ("openflamingo-9b", 8, 256, [(47_346.0, 48_212.0), (39_405.0, 39_636.0)], [4438.9, 3230.6]),
    ] {
        let ways = ways_of(model, rows, tokens);
        for (way, (pinned, measured)) in ways.iter().zip(memory) {
            near(&format!("{model}, {rows} rows"), way.memory.total as f64 / MIB, pinned, measured);
        }
        for (way, rate) in ways.iter().zip(rates) {
            let planned = way.tokens_per_second;
            assert!((planned / rate - 1.0).abs() < 0.1, "{model}, {rows} rows: {planned} tokens/s, not {rate}");
        }
    }
    // Nothing was fitted to this one: almost all of it is launching.
    let [small, _] = ways_of("openflamingo-3b", 2, 64);
    assert!((small.tokens_per_second / 1002.0 - 1.0).abs() < 0.1, "{} tokens/s", small.tokens_per_second);
}

/// Of a model of the zoo, with one picture a row.
fn ways_of(model: &str, rows: u64, tokens: u64) -> [Way; 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models").join(model).join("model.toml");
    let text = std::fs::read_to_string(path).expect("a model of the zoo");
    let config = ModelConfig::from_toml(&text).expect("a config");
    let pairs = Stream { rows, tokens, images: 1.0, most_images: 1, samples: rows };
    ways(config, Precision::AmpBf16, pairs, Stream { rows: 0, ..pairs })
}
