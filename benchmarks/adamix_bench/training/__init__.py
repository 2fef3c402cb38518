"""`adamix bench training`: what a step of a mixture costs, in time and memory, against one adapter on the same rows."""
