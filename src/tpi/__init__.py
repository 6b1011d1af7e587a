"""tpi: large language models on several devices that are each too small for them."""
