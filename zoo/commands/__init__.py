"""Commands of `zoo`, a module for each group of them; `zoo.cli` registers them."""
