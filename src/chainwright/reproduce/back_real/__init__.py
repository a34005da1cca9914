"""Back attention beside a frozen pretrained model: facts, arithmetic and word problems, answered at once."""
