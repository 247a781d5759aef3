//! The GPU check, tried on the CPU.

use std::path::Path;

use flamingo_engine::Device;
use xtask::gpu_check::{GpuCheck, recordings};

#[test]
fn the_check_fills_its_page() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = xtask::convert::config("golden-tiny").expect("a config");
    let check = GpuCheck {
        device: Device::Flex,
        golden: recordings(&[root.join("tests/fixtures/golden/opt350")]).expect("a recording"),
        configs: vec![config],
        rows: 2,
        tokens: 12,
        peak: Some(0.1),
        python: None,
        apart: None,
    };
    let mut page = String::new();
    check.run(&mut |_| {}, &mut |text| page.push_str(text)).expect("a page");
    assert!(page.contains("| opt350 | ") && page.contains(" | 0 | 0 | 0."), "{page}");
    for what in ["training, tokens/s", "training, utilisation", "training, checkpointed, tokens/s", "decode, tokens/s"]
    {
        assert!(page.contains(&format!("| golden-tiny | {what}")), "{what}: {page}");
    }
    assert!(!page.contains("could not be run"), "{page}");
    assert!(recordings(&[root.join("benches")]).is_err());
}
