"""RadVision-7B: fine-tune a vision-language model on chest radiographs. Research and education only."""
