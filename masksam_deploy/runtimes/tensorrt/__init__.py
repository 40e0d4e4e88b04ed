"""TensorRT and TensorRT for RTX: opening engines (`chain`, `engine`) and building them (`builder`, `rtx_builder`)."""
