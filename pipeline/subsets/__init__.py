"""What a training reads: the kept samples, in tars of their own or filtered from the pool's."""
