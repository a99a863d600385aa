import dspy
from report import BASE_URL, KEY, MODEL, QUESTION, tried

model = dspy.LM(f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY, cache=False)
with tried("LM"):
    assert model(QUESTION)
with tried("Predict"):
    dspy.configure(lm=model)
    dspy.Predict("question -> answer")(question=QUESTION)
