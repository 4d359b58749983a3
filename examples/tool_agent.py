"""A tool-using agent on LangGraph: two instructions are compared, model calls and tool calls are in the log.

    pip install langgraph langchain-openai
    OPENAI_API_KEY=sk-... python examples/tool_agent.py

Any OpenAI-compatible endpoint will do: OPENAI_BASE_URL says which, OPENAI_MODEL the model's name there.
"""

import argparse
import os
import sys
from functools import cache

import agentlightning as agl

try:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition
except ImportError as error:
    sys.exit(f"This example needs LangGraph ({error}): pip install langgraph langchain-openai")

PRICES = {"lamp": 24, "chair": 59, "table": 180}
INSTRUCTIONS = [
    "You work in a furniture shop.",
    "You work in a furniture shop. Look up every price with the tool; answer with the total as a number and nothing else.",
]
TASKS = [
    {"question": "What do 3 lamps cost?", "answer": "72"},
    {"question": "What do 2 chairs cost?", "answer": "118"},
    {"question": "What does a table cost?", "answer": "180"},
]


@tool
def look_up_price(item: str) -> str:
    """The price of one item in euros; the item in the singular."""
    return str(PRICES.get(item, "we do not sell this"))


@cache
def graph():
    """Think, use tools, think again: once per process."""
    model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-4.1-nano")).bind_tools([look_up_price])

    def think(state: MessagesState):
        return {"messages": [model.invoke(state["messages"])]}

    built = StateGraph(MessagesState)
    built.add_node("think", think)
    built.add_node("tools", ToolNode([look_up_price]))
    built.add_edge(START, "think")
    built.add_conditional_edges("think", tools_condition)
    built.add_edge("tools", "think")
    return built.compile()


@agl.rollout
def shop_assistant(task, prompt_template: agl.PromptTemplate) -> float:
    """The agent: one conversation, at most ten steps long. What it returns is the reward."""
    messages = [("system", prompt_template.format()), ("user", task["question"])]
    # With it, nodes and tools become spans around the model calls. There is no tracer where this is called by hand.
    tracer = agl.get_active_tracer()
    callbacks = [tracer.get_langchain_handler()] if tracer else []
    final = graph().invoke({"messages": messages}, {"recursion_limit": 10, "callbacks": callbacks})
    return 1.0 if final["messages"][-1].content.strip() == task["answer"] else 0.0


@agl.algo
async def compare(store, train_dataset):
    """Every instruction on every task; the better one is what the fit returns."""
    best, best_mean = None, None
    for instruction in INSTRUCTIONS:
        resources = await store.add_resources({"prompt_template": instruction})
        ids = [
            (await store.enqueue_rollout(task, resources_id=resources.resources_id)).rollout_id
            for task in train_dataset
        ]
        await store.wait_for_rollouts(ids)
        rewards, tools = [], 0
        for one in ids:
            spans = await store.query_spans(one, attempt_id="latest")
            rewards.append(agl.find_final_reward(spans))
            tools += sum(span.name.startswith("langchain.Tool.") for span in spans)
        known = [reward for reward in rewards if reward is not None]  # a missing reward is not 0
        mean = sum(known) / len(known) if known else None
        print(f"[compare] {mean}  {tools} tool calls  {instruction!r}")
        if mean is not None and (best_mean is None or mean > best_mean):
            best, best_mean = resources, mean
    return best


def main() -> None:
    """Compare, and say what was found and where the log is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", help="sqlite:///, http://, kafka:// or memory://; ./.agl/log.db if left out")
    arguments = parser.parse_args()
    if "OPENAI_API_KEY" not in os.environ:
        sys.exit("Set OPENAI_API_KEY; where OPENAI_BASE_URL is a server of your own, any text will do.")
    agl.setup_logging("WARNING")  # "INFO" says what every worker does
    trainer = agl.Trainer(name="tool_agent", algorithm=compare, n_runners=2, store=arguments.store)
    result = trainer.fit(shop_assistant, TASKS)
    print(f"Run {result.run_id} {result.outcome} after {len(result.statuses)} rollouts")
    for name, prompt in (result.best_resources or {}).items():
        if isinstance(prompt, agl.PromptTemplate):
            print(f"Best {name}: {prompt.template!r}")
    if not result.best_resources:
        print("No prompt was chosen; the log says why.")
    log, option = (arguments.store, f" --log {arguments.store}") if arguments.store else (".agl", "")
    if log.startswith(("http", "memory")):
        print(f"The log is what the store at {log} keeps")
    else:
        print(f"The log is in {log}: agl ps{option}; agl show {result.run_id}{option}")


if __name__ == "__main__":
    main()
