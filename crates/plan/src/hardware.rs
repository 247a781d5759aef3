//! Devices and what joins them.

use std::str::FromStr;

use serde::Serialize;

use crate::{PlanError, Precision};

/// A number of bytes, as people write one: `80GB`, `512MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let fail = || PlanError::Value {
            given: text.to_string(),
            what: "size of a memory",
            fix: "a number with its unit, such as 80GB or 512MiB",
        };
        let unit = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(fail)?;
        let (number, unit) = text.split_at(unit);
        let number: f64 = number.trim().parse().map_err(|_| fail())?;
        let factor = match unit.to_ascii_lowercase().as_str() {
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "mib" => 1024f64.powi(2),
            "gib" => 1024f64.powi(3),
            "tib" => 1024f64.powi(4),
            _ => return Err(fail()),
        };
        let bytes = number * factor;
        if (1.0..1e18).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(fail()) }
    }
}

/// How fast a device computes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Device {
    /// Its name, or that of a number of operations a second.
    pub name: &'static str,
    /// Operations a second in products of bf16.
    pub bf16: f64,
    /// Operations a second in products of f32, which are not rounded to TF32 here.
    pub f32: f64,
    /// Bytes a second to and from its memory.
    pub bandwidth: f64,
    /// Its memory, where the name says it.
    #[serde(skip)]
    pub memory: Option<Bytes>,
}

/// NVIDIA's data sheets, dense: A100 (2021) and H100 SXM (2023).
const DEVICES: [Device; 3] = [
    Device { name: "a100-40gb", bf16: 312e12, f32: 19.5e12, bandwidth: 1555e9, memory: Some(Bytes(40_000_000_000)) },
    Device { name: "a100-80gb", bf16: 312e12, f32: 19.5e12, bandwidth: 2039e9, memory: Some(Bytes(80_000_000_000)) },
    Device { name: "h100-80gb", bf16: 989e12, f32: 67e12, bandwidth: 3350e9, memory: Some(Bytes(80_000_000_000)) },
];

/// Bytes a second of a device of which operations alone are known.
const UNKNOWN_BANDWIDTH: f64 = 1e12;

impl Device {
    /// The rate of products in a format.
    pub fn rate(&self, precision: Precision) -> f64 {
        match precision {
            Precision::Fp32 => self.f32,
            Precision::AmpBf16 => self.bf16,
        }
    }
}

impl FromStr for Device {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        if let Some(device) = DEVICES.iter().find(|device| device.name == text) {
            return Ok(*device);
        }
        let rate = text.parse::<f64>().ok().filter(|rate| (1e-3..1e6).contains(rate)).map(|rate| rate * 1e12);
        let rate = rate.ok_or_else(|| PlanError::Value {
            given: text.to_string(),
            what: "device",
            fix: "a100-40gb, a100-80gb, h100-80gb or a number of TFLOP/s",
        })?;
        Ok(Self { name: "TFLOP/s as given", bf16: rate, f32: rate, bandwidth: UNKNOWN_BANDWIDTH, memory: None })
    }
}

/// What joins the nodes: bytes a second that a node can send and receive at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interconnect {
    /// Its name.
    pub name: &'static str,
    /// Bytes a second each way.
    pub bandwidth: f64,
    /// Whether all devices of a node share it; else each has one.
    pub shared: bool,
}

/// What joins the devices of a node: NVLink of an A100, 600 GB/s in both directions together (data sheet).
pub const NVLINK: Interconnect = Interconnect { name: "nvlink", bandwidth: 300e9, shared: false };

/// 8 bits a byte. InfiniBand: an adapter a device, as in a DGX A100; Ethernet: one a node.
const INTERCONNECTS: [Interconnect; 4] = [
    NVLINK,
    Interconnect { name: "infiniband-200g", bandwidth: 25e9, shared: false },
    Interconnect { name: "ethernet-100g", bandwidth: 12.5e9, shared: true },
    Interconnect { name: "ethernet-10g", bandwidth: 1.25e9, shared: true },
];

impl FromStr for Interconnect {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        if let Some(interconnect) = INTERCONNECTS.iter().find(|interconnect| interconnect.name == text) {
            return Ok(*interconnect);
        }
        let rate = text.parse::<f64>().ok().filter(|rate| (1e-6..1e6).contains(rate));
        let rate = rate.ok_or_else(|| PlanError::Value {
            given: text.to_string(),
            what: "interconnect",
            fix: "nvlink, infiniband-200g, ethernet-100g, ethernet-10g or the GB/s of a device",
        })?;
        Ok(Self { name: "GB/s as given", bandwidth: rate * 1e9, shared: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_names_are_read() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0);
        assert_eq!(bytes("80GB"), Ok(80_000_000_000));
        assert_eq!(bytes("1.5 GiB"), Ok(3 << 29));
        for wrong in ["", "80", "GB", "-1GB", "80PB", "nanGB", "80GBB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!("h100-80gb".parse::<Device>().map(|device| device.rate(Precision::AmpBf16)), Ok(989e12));
        assert_eq!("400".parse::<Device>().map(|device| device.rate(Precision::Fp32)), Ok(400e12));
        assert_eq!("ethernet-10g".parse::<Interconnect>().map(|i| i.bandwidth), Ok(1.25e9));
        for wrong in ["", "v100", "-1", "nan", "inf", "0"] {
            assert!(wrong.parse::<Device>().is_err() && wrong.parse::<Interconnect>().is_err(), "{wrong}");
        }
    }
}
