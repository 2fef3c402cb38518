"""Who may do what, and how much of it: values and rules, without a wire, a catalog or a clock."""
