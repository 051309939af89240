// ---- kernel: asking it for something, and knowing whether it hears

const PATIENCE = 1200; // ms until a kernel that has not answered is called busy
const BEAT = 20000; // ms between two questions whether it is there
const AFTER = 300; // ms after a choice until it is asked: clicks in a row wait for no answers

// Every request carries a number and the kernel answers with it. `say` gets a state and its words.
function listenTo(model, say) {
  const waiting = new Map();
  let [count, gone, timer, soon] = [0, false, null, null];
  const names = () => [...new Set([...waiting.values()].map((one) => one.what).filter((what) => what))];
  function tell() {
    const what = names().length ? `: ${names().join(", ")}` : "";
    if (gone) say("gone", `No kernel${what ? `, not heard${what}` : ""}. Run the picker's cell again.`);
    else if (!waiting.size) say("ready", "");
    else if ([...waiting.values()].some((one) => one.late))
      say("busy", `Kernel busy, or gone${what ? `; waiting${what}` : ""}`);
    else if (what) say("asked", `asked${what}`);
  }
  function ask(what, content, { words = what, then = null } = {}) {
    const id = ++count;
    const entry = { what: words, late: false, then };
    waiting.set(id, entry);
    setTimeout(() => {
      entry.late = true;
      if (waiting.has(id)) tell();
    }, PATIENCE);
    try {
      model.send({ do: what, id, ...content });
    } catch {
      gone = true;
    }
    tell();
  }
  const ping = () => {
    if (![...waiting.values()].some((one) => !one.what)) ask("ping", {}, { words: "" });
  };
  const pingSoon = () => {
    clearTimeout(soon);
    soon = setTimeout(ping, AFTER);
  };
  // What a kernel answers after "busy" waits in the server for the page's next packet, 40 ms where it has nothing to
  // say (Nagle's algorithm and delayed acknowledgement): the page says something at once.
  const begun = { iopub: { status: ({ content }) => content.execution_state === "busy" && ping() } };
  function hear(message) {
    const entry = waiting.get(message?.heard);
    if (!entry) return;
    gone = false;
    waiting.delete(message.heard);
    tell();
    if (message.why) say("refused", `${entry.what || "the kernel"}: ${message.why}`);
    else entry.then?.(message);
  }
  // the connection changed: gone until something answers
  const lost = () => {
    gone = true;
    tell();
  };
  const events = [["msg:custom", hear], ["comm_live_update", lost], ["comm:close", lost], ["destroy", lost]];
  for (const [name, handler] of events) model.on(name, handler);
  timer = setInterval(() => document.visibilityState === "visible" && !gone && ping(), BEAT);
  ping();
  return {
    ask,
    begun,
    pingSoon,
    stop() {
      clearInterval(timer);
      clearTimeout(soon);
      for (const [name, handler] of events) model.off(name, handler);
    },
  };
}
