"""The resident base model: loading, what of it can be trained, the handle that strategies work on, export."""
