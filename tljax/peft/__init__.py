"""Parameters added to a frozen backbone: LoRA, adapters, prompts."""
