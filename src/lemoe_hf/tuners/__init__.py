"""PEFT methods, one package each."""
