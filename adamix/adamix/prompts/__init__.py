"""What a decoder is asked with: token ids of sources, texts and chats, the same in training and in the server.

Without torch and transformers, because front ends load neither. Import from the modules: this package loads nothing by
itself.
"""
