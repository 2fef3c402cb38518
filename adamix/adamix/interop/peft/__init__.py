"""LoRAs of PEFT, in and out."""
