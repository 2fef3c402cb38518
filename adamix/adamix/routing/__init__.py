"""A trained mixture measured by its routes: merged, random, fixed or all together, and how sure it is."""
