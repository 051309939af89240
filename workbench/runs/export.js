// In the page that draws figures for export: every image is drawn with the shipped font, which PDF, SVG and PNG then
// carry, and a PDF has the name of its figure as its title. An SVG drawn as an image knows no font but its own.
(() => {
  const css = document.getElementById("fonts").textContent;
  const loaded = Promise.all([...document.fonts].map((font) => font.load()));
  const draw = Plotly.toImage;
  let last = { told: "", svg: "" }; // the same figure in another format is not drawn again
  Plotly.toImage = async (figure, options) => {
    await loaded;
    document.title = figure.layout.meta?.title ?? "figure";
    const told = JSON.stringify([figure, options.width, options.height]);
    if (told !== last.told) {
      const vector = { format: "svg", imageDataOnly: true, width: options.width, height: options.height };
      const plain = await draw(figure, vector);
      last = { told, svg: plain.replace(/<svg[^>]*>/, (tag) => `${tag}<style>${css}</style>`) };
    }
    const { svg } = last;
    if (options.format === "svg") {
      return options.imageDataOnly ? svg : `data:image/svg+xml,${encodeURIComponent(svg)}`;
    }
    const canvas = document.createElement("canvas");
    const image = await Plotly.Snapshot.svgToImg({ ...options, canvas, svg, promise: true });
    return options.imageDataOnly ? image.replace(/^data:image\/\w+;base64,/, "") : image;
  };
})();
