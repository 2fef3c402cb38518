"""Text becomes padded tensors: rows of labels, of a template's word, of a text to be learned."""
