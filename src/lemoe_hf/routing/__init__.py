"""Which edit acts where: a text in, experts out. Needs no PEFT, no Trainer, and no model around it."""
