//! The one place that names backends: a model on a device, behind one object-safe trait.
