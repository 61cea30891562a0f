"""Steps of rollouts are valued: by rollouts that go on from them."""
