"""What a training or an adapter file has to tell, as a page and as a model card."""
