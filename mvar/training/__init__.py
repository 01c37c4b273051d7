"""Training: one `loop` for any objective (`contract`; `generator`, `tokenizer`), optimizer, processes, checkpoints."""
