"""PEFT methods, one package each; what they share stands beside them, and knows none of them."""
