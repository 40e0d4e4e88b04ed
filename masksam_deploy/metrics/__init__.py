"""How far label maps, surfaces and scores agree."""
