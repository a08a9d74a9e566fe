"""Which edit acts where: a text in, experts out. None of these modules imports PEFT or Trainer."""
