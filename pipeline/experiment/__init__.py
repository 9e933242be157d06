"""What a study is: its YAML, checked, and what it is made from."""
