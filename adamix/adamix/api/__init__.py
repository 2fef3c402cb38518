"""The face of the method for programs and notebooks: what `import adamix` offers, one module each.

The same names, defaults and errors as the command line; a message names arguments where the command's names flags.
"""
